//! The GGUF reader on sound files, on lies and on noise.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::synthetic::{Meta, Synthetic};
use super::*;

/// One F32 matrix of 2 rows by 3 and one row of 32 Q8_0 numbers, each kind of metadata once.
fn sample() -> Synthetic {
    let mut data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    data.resize(32 + 34, 7);
    Synthetic::default()
        .meta("general.architecture", Meta::Str("llama".into()))
        .meta("small", Meta::U8(7))
        .meta("plain", Meta::U32(1 << 20))
        .meta("negative", Meta::I64(-1))
        .meta("float", Meta::F32(0.5))
        .meta("double", Meta::F64(0.25))
        .meta("flag", Meta::Bool(1))
        .meta("tokens", Meta::Strs(vec!["a".into(), "é".into()]))
        .meta("scores", Meta::F32s(vec![-1.0, 2.0]))
        .meta("types", Meta::I32s(vec![1, 3]))
        .tensor("matrix", &[3, 2], 0, 0)
        .tensor("row", &[32], 8, 32)
        .data(&data)
}

fn error(file: &Synthetic) -> String {
    GgufFile::parse(file.bytes(3, 32)).expect_err("a broken file").to_string()
}

#[test]
fn sound_files_read_back() {
    for version in [2, 3] {
        let file = GgufFile::parse(sample().bytes(version, 32)).unwrap();
        assert_eq!(file.version(), version);
        assert_eq!(file.get_str("general.architecture").unwrap(), "llama");
        assert_eq!(file.get_u32("small").unwrap(), 7);
        assert_eq!(file.get_u64("plain").unwrap(), 1 << 20);
        assert_eq!(file.get_f32("float").unwrap(), 0.5);
        assert_eq!(file.get_f32("double").unwrap(), 0.25);
        assert!(file.get_bool("flag").unwrap());
        assert_eq!(file.get_strings("tokens").unwrap(), ["a", "é"]);
        assert_eq!(file.get_f32s("scores").unwrap(), [-1.0, 2.0]);
        assert_eq!(file.get_i32s("types").unwrap(), [1, 3]);
        assert_eq!(file.get_u32s("types").unwrap(), [1, 3]);
        let matrix = file.tensor("matrix").unwrap();
        assert_eq!((matrix.shape.as_slice(), matrix.storage), ([2, 3].as_slice(), StorageType::F32));
        assert_eq!(matrix.bytes[20..24], 5f32.to_le_bytes());
        assert_eq!(file.tensor("row").unwrap().bytes, [7u8; 34]);
        assert_eq!(file.tensors()[1].name(), "row");
    }
}

#[test]
fn files_open_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, sample().bytes(3, 32)).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().tensors().len(), 2);
    let missing = GgufFile::open(dir.path().join("none.gguf")).unwrap_err().to_string();
    assert!(missing.contains("none.gguf"), "{missing}");
    assert!(matches!(GgufFile::open(dir.path()), Err(GgufError::Io { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(GgufFile::open(&path), Err(GgufError::Truncated { .. })));
}

#[test]
fn questions_of_the_wrong_type_are_refused() {
    let file = GgufFile::parse(sample().bytes(3, 32)).unwrap();
    let cases = [
        (file.get_u32("none").err(), "metadata key `none`: expected in the file, not found"),
        (file.get_u32("float").err(), "metadata key `float`: expected a 32-bit unsigned integer, found F32"),
        (file.get_u32("negative").err(), "metadata key `negative`: expected a 32-bit unsigned integer, found -1"),
        (file.get_f32("small").err(), "metadata key `small`: expected a floating-point number, found U8"),
        (file.get_bool("small").err(), "metadata key `small`: expected a boolean, found U8"),
        (file.get_str("tokens").err(), "metadata key `tokens`: expected a string, found an array of 2 String"),
        (
            file.get_strings("scores").err(),
            "metadata key `scores`: expected an array of strings, found an array of 2 F32",
        ),
        (file.get_i32s("small").err(), "metadata key `small`: expected an array of 32-bit signed integers, found U8"),
        (file.tensor("none").err(), "tensor `none`: expected in the file, not found"),
    ];
    for (found, message) in cases {
        assert_eq!(found.unwrap().to_string(), message);
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample().bytes(3, 32);
    for end in 0..bytes.len() {
        assert!(GgufFile::parse(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn lies_about_tensors_are_named() {
    let cases: Vec<(Vec<u64>, u32, u64, &str)> = vec![
        (vec![], 0, 0, "tensor `t`: expected 1 to 4 dimensions, found 0"),
        (vec![1; 5], 0, 0, "tensor `t`: expected 1 to 4 dimensions, found 5"),
        (vec![4, 0], 0, 0, "tensor `t`: expected dimensions above zero, found [4, 0]"),
        (vec![1 << 40, 1 << 40], 0, 0, "tensor `t`: expected a size that can be addressed, found the shape"),
        (vec![1 << 62], 0, 0, "tensor `t`: expected a size that can be addressed, found the shape"),
        (vec![33], 8, 0, "tensor `t`: expected rows of whole Q8_0 blocks of 32 numbers, found rows of 33"),
        (vec![4], 0, 1, "tensor `t`: expected a data offset that is a multiple of 32, found 1"),
        (vec![4], 0, 32, "tensor `t`: expected its 16 bytes from data offset 32 inside the file"),
        (vec![4], 0, u64::MAX - 31, "tensor `t`: expected its 16 bytes from data offset 18446744073709551584 inside"),
        (vec![5], 0, 0, "tensor `t`: expected its 20 bytes from data offset 0 inside the file"),
    ];
    for (dimensions, type_number, offset, message) in cases {
        let found = error(&Synthetic::default().tensor("t", &dimensions, type_number, offset).data(&[0; 16]));
        assert!(found.starts_with(message), "expected {message}, found {found}");
    }
}

#[test]
fn unknown_tensor_types_are_refused_on_access_only() {
    let file = GgufFile::parse(Synthetic::default().tensor("t", &[4], 99, 0).bytes(3, 32)).unwrap();
    assert_eq!(file.tensors()[0].type_number(), 99);
    let found = file.tensor("t").unwrap_err().to_string();
    assert_eq!(found, "tensor `t`: the GGML type number 99 is unknown or not supported");
}

#[test]
fn lies_in_the_metadata_are_named() {
    let array = |kind: u32, num_items: u64| {
        let mut raw = 9u32.to_le_bytes().to_vec();
        raw.extend(kind.to_le_bytes());
        raw.extend(num_items.to_le_bytes());
        Meta::Raw(raw)
    };
    let mut string = 8u32.to_le_bytes().to_vec();
    string.extend((1u64 << 60).to_le_bytes());
    let cases = vec![
        (array(9, 1), "k at offset 37: expected an array of scalars or strings, found an array of arrays"),
        (array(4, u64::MAX), "k at offset 49: expected 18446744073709551615 bytes, found 15 before"),
        (array(8, 1 << 40), "k at offset 49: expected 8796093022208 bytes, found 15 before"),
        (Meta::Raw(string), "k at offset 37: expected at most 16777216, found 1152921504606846976"),
        (Meta::Bool(2), "k at offset 37: expected the boolean 0 or 1, found 2"),
        (Meta::Raw(13u32.to_le_bytes().to_vec()), "k at offset 33: expected a value type from 0 to 12, found 13"),
    ];
    for (value, message) in cases {
        let found = error(&Synthetic::default().meta("k", value));
        assert!(found.starts_with(message), "expected {message}, found {found}");
    }
    for found in [0, 3, 8192] {
        let message = error(&Synthetic::default().meta("general.alignment", Meta::U32(found)));
        assert_eq!(message, format!("general.alignment: expected a power of two up to 4096, found {found}"));
    }
    let twice = Synthetic::default().meta("k", Meta::U8(1)).meta("k", Meta::U8(1));
    assert_eq!(error(&twice), "metadata key `k` at offset 38: expected each name once, found it twice");
    let twice = Synthetic::default().tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 0).data(&[0; 16]);
    assert!(error(&twice).starts_with("tensor `t` at offset 57: expected each name once"));
}

#[test]
fn huge_counts_and_foreign_versions_are_refused() {
    let with = |offset: usize, bytes: &[u8]| {
        let mut file = sample().bytes(3, 32);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        GgufFile::parse(file).expect_err("a broken file").to_string()
    };
    assert!(with(0, b"GG\0L").ends_with("begin with \"GGUF\", found \"GG\\x00L\""));
    assert!(with(4, &1u32.to_le_bytes()).contains("expected 2 or 3 (little endian), found 1"));
    assert!(with(4, &3u32.to_be_bytes()).contains("found 50331648"));
    assert!(with(8, &u64::MAX.to_le_bytes()).starts_with("tensor_count at offset 8: expected at most"));
    assert!(with(16, &u64::MAX.to_le_bytes()).starts_with("metadata_kv_count at offset 16: expected at most"));
}

#[test]
fn the_alignment_of_the_file_is_used() {
    let file = Synthetic::default().meta("general.alignment", Meta::U32(64)).tensor("t", &[4], 0, 64).data(&[9; 80]);
    let file = GgufFile::parse(file.bytes(3, 64)).unwrap();
    assert_eq!(file.tensor("t").unwrap().bytes, [9; 16]);
}

/// Asks everything of a file that parsed.
fn exercise(file: &GgufFile<Vec<u8>>) {
    for key in file.keys() {
        let _ = (file.get_u32(key), file.get_u64(key), file.get_f32(key), file.get_bool(key));
        let _ = (file.get_str(key), file.get_strings(key), file.get_f32s(key), file.get_i32s(key), file.get_u32s(key));
    }
    for info in file.tensors() {
        if let Ok(view) = file.tensor(info.name()) {
            let blocks = view.shape.iter().product::<usize>() / view.storage.block_size();
            assert_eq!(view.bytes.len(), blocks * view.storage.type_size());
        }
    }
}

/// The header of a real file, changed at places drawn by a fixed seed, without the tensor data.
#[test]
fn changed_real_headers_never_panic() {
    let file = GgufFile::open(crate::test_models::real_model()).unwrap();
    let sound = file.tensor("token_embd.weight").unwrap().bytes.as_ptr();
    let header_bytes = sound as usize - file.storage.as_ptr() as usize;
    let mut bytes = file.storage[..header_bytes].to_vec();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    // Near the start stand the counts and scalars, near the end the tensors; between them, the tokens.
    let near = 0..2048.min(header_bytes);
    let places = prop_oneof![near.clone(), near.prop_map(move |i| header_bytes - 1 - i), 0..header_bytes];
    let changes = proptest::collection::vec((places, any::<u8>()), 1..4);
    for _ in 0..300 {
        let changes = changes.new_tree(&mut runner).unwrap().current();
        let saved: Vec<(usize, u8)> = changes.iter().map(|&(at, _)| (at, bytes[at])).collect();
        changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        assert!(GgufFile::parse(&bytes).is_err(), "the tensor data is missing");
        saved.iter().rev().for_each(|&(at, byte)| bytes[at] = byte);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..256), magic in any::<bool>()) {
        let mut bytes = if magic { b"GGUF\x03\0\0\0".to_vec() } else { Vec::new() };
        bytes.extend(noise);
        if let Ok(file) = GgufFile::parse(bytes) {
            exercise(&file);
        }
    }

    #[test]
    fn changed_files_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()]), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = sample().bytes(3, 32);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = GgufFile::parse(bytes) {
            exercise(&file);
        }
    }
}
