//! Stored matrices against the numbers that the `gguf` package reads from the same bytes.

use crate::support::*;
use kernels::{Matrix, StorageType};
use safetensors::SafeTensors;
use std::path::Path;

/// Numbers are products and sums of two or three exact factors: a few roundings, in whatever order they are taken.
#[test]
fn dequantised_numbers_are_those_of_gguf() {
    let file =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dequantise.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&file).unwrap();
    for storage_type in STORAGE_TYPES.into_iter().filter(|t| *t != StorageType::F32) {
        let stored = golden.tensor(&format!("{storage_type:?}.bytes")).unwrap();
        let expected = golden.tensor(&format!("{storage_type:?}.f32")).unwrap();
        assert_eq!(expected.shape(), [2, 512]);
        let expected: Vec<f32> =
            expected.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let matrix = Matrix::new(storage_type, 2, 512, stored.data()).unwrap();
        // `scale * number - minimum` may cancel, so that roundings are of the block's magnitude.
        let found = matrix.to_f32();
        for (block, (found, expected)) in found.chunks(32).zip(expected.chunks(32)).enumerate() {
            let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 1e-6 * largest,
                    "{storage_type:?}, block {block}: {found}, expected {expected}"
                );
            }
        }
        let mut row = vec![0f32; 512];
        matrix.dequantise_row(1, &mut row);
        assert_eq!(row, found[512..]);
    }
}

#[test]
fn floats_are_kept_bit_for_bit() {
    let numbers = [1.5f32, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX, 1e-30, -3.25];
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(Matrix::new(StorageType::F32, 2, 3, &bytes).unwrap().to_f32()), numbers.map(f32::to_bits));
    assert_eq!(bits(Matrix::from_f32(numbers.to_vec(), 3, 2).unwrap().to_f32()), numbers.map(f32::to_bits));
}

/// bf16 has 8 significant bits, so that rounding to nearest is off by at most 2^-8 of a number.
#[test]
fn to_bf16_rounds_to_nearest() {
    let mut rng = generator(41);
    let matrix = matrix(&mut rng, StorageType::Q6_K, 3, 256);
    let rounded = matrix.to_bf16();
    assert_eq!((rounded.rows(), rounded.cols(), rounded.storage_type()), (3, 256, StorageType::BF16));
    for (exact, rounded) in matrix.to_f32().iter().zip(rounded.to_f32()) {
        assert!((exact - rounded).abs() <= exact.abs() / 256.0, "{exact} became {rounded}");
    }
}

/// Rows of whole numbers, 127 of which stand for the largest of the row once it is turned: an even spread of numbers below 1
/// is off by no more than a hundredth.
#[test]
fn to_int8_rounds_by_row() {
    let mut rng = generator(42);
    let exact = Matrix::from_f32(uniform(&mut rng, 5 * 100), 5, 100).unwrap();
    let rounded = exact.to_int8().unwrap();
    assert_eq!((rounded.rows(), rounded.cols()), (5, 100));
    let distance: f32 = exact.to_f32().iter().zip(rounded.to_f32()).map(|(a, b)| (a - b).powi(2)).sum();
    assert!((distance / 500.0).sqrt() < 0.01, "{distance}");
    let wide = Matrix::from_f32(vec![1.0; 1 << 17], 1, 1 << 17).unwrap();
    assert!(wide.to_int8().unwrap_err().to_string().contains("at most 66311 columns"));
}

#[test]
fn wrong_sizes_are_refused() {
    for storage_type in STORAGE_TYPES {
        let cols = 256;
        let bytes = vec![0u8; 2 * cols / storage_type.block_size() * storage_type.type_size()];
        assert!(Matrix::new(storage_type, 2, cols, &bytes).is_ok());
        assert!(Matrix::new(storage_type, 2, cols, &bytes[1..]).is_err());
        assert!(Matrix::new(storage_type, 2, cols, &[&bytes[..], &[0]].concat()).is_err());
        assert!(Matrix::new(storage_type, 3, cols, &bytes).is_err());
        assert!(Matrix::new(storage_type, 0, cols, &[]).is_err());
        assert!(Matrix::new(storage_type, 2, 0, &[]).is_err());
        assert!(Matrix::new(storage_type, usize::MAX, cols, &bytes).is_err());
        assert!(Matrix::new(storage_type, 2, usize::MAX - 255, &bytes).is_err());
        if storage_type.block_size() > 1 {
            assert!(Matrix::new(storage_type, 2, cols - 1, &bytes).is_err());
        }
    }
    assert!(Matrix::from_f32(vec![0.0; 5], 2, 3).is_err());
    assert!(Matrix::from_f32(vec![], 0, 3).is_err());
    assert!(Matrix::from_f32(vec![0.0; 4], usize::MAX, 4).is_err());
}

#[test]
fn ggml_numbers_name_each_storage_type_once() {
    let named: Vec<StorageType> = (0..1000).filter_map(StorageType::from_ggml).collect();
    assert_eq!(named.len(), STORAGE_TYPES.len());
    assert!(STORAGE_TYPES.iter().all(|t| named.contains(t)));
}
