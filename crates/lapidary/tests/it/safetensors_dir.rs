//! Model directories with whole, sharded and broken safetensors files.

use std::collections::HashMap;
use std::path::Path;

use kernels::StorageType;
use lapidary::model::SafetensorsDir;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views: HashMap<String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            ((*name).to_owned(), TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        })
        .collect();
    serialize(views, None).unwrap()
}

fn error(dir: &Path) -> String {
    SafetensorsDir::open(dir).unwrap_err().to_string()
}

fn write_index(dir: &Path, map: &[(&str, &str)]) {
    let map: HashMap<_, _> = map.iter().copied().collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn one_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file(&[
        ("a", Dtype::F32, &[1, 2], &[0, 0, 128, 63, 0, 0, 0, 64]),
        ("b", Dtype::BF16, &[2], &[1, 2, 3, 4]),
        ("c", Dtype::I8, &[1], &[7]),
    ]);
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let weights = SafetensorsDir::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    let a = weights.tensor("a").unwrap();
    assert_eq!((a.shape.as_slice(), a.storage), (&[1, 2][..], StorageType::F32));
    assert_eq!(a.bytes, [0, 0, 128, 63, 0, 0, 0, 64]);
    assert_eq!(weights.tensor("b").unwrap().bytes, [1, 2, 3, 4]);
    let message = weights.tensor("c").unwrap_err().to_string();
    assert!(message.ends_with("tensor `c`: expected F32, F16 or BF16, found I8"), "{message}");
    let message = weights.tensor("d").unwrap_err().to_string();
    assert!(message.ends_with("expected the tensor `d`, found none among 3"), "{message}");
}

#[test]
fn shards() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("1.safetensors"), file(&[("a", Dtype::F16, &[1], &[1, 2])])).unwrap();
    std::fs::write(dir.path().join("2.safetensors"), file(&[("b", Dtype::F16, &[1], &[3, 4])])).unwrap();
    write_index(dir.path(), &[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let weights = SafetensorsDir::open(dir.path()).unwrap();
    assert_eq!(weights.tensor("a").unwrap().bytes, [1, 2]);
    assert_eq!(weights.tensor("b").unwrap().bytes, [3, 4]);

    write_index(dir.path(), &[("a", "1.safetensors"), ("b", "1.safetensors")]);
    assert!(error(dir.path()).contains("1.safetensors: expected the tensor `b`"));
    write_index(dir.path(), &[("a", "3.safetensors")]);
    assert!(error(dir.path()).contains("3.safetensors: "));
    write_index(dir.path(), &[]);
    assert!(error(dir.path()).contains("weight_map: expected tensors, found none"));
}

#[test]
fn an_index_cannot_leave_the_directory() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    let outside = outer.path().join("x.safetensors");
    std::fs::write(&outside, file(&[("a", Dtype::F16, &[1], &[1, 2])])).unwrap();
    let absolute = outside.to_str().unwrap();
    for name in ["../x.safetensors", absolute, "", ".", "..", "sub/../../x.safetensors"] {
        write_index(&dir, &[("a", name)]);
        assert!(error(&dir).contains("inside the model directory"), "{name}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, dir.join("link.safetensors")).unwrap();
        write_index(&dir, &[("a", "link.safetensors")]);
        assert!(error(&dir).contains("inside the model directory"));
    }
}

#[cfg(unix)]
#[test]
fn links_into_the_contents_of_a_hub_cache_are_followed() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--org--name");
    let snapshot = repository.join("snapshots/abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    std::fs::write(repository.join("blobs/1f"), file(&[("a", Dtype::F16, &[1], &[1, 2])])).unwrap();
    std::os::unix::fs::symlink("../../blobs/1f", snapshot.join("1.safetensors")).unwrap();
    write_index(&snapshot, &[("a", "1.safetensors")]);
    assert_eq!(SafetensorsDir::open(&snapshot).unwrap().tensor("a").unwrap().bytes, [1, 2]);
}

#[test]
fn broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).contains("expected model.safetensors or model.safetensors.index.json"));
    let path = dir.path().join("model.safetensors");
    let whole = file(&[("a", Dtype::F32, &[2], &[0; 8]), ("b", Dtype::F16, &[3], &[0; 6])]);
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(error(dir.path()).contains("model.safetensors: "), "{length}");
    }
    for header in [
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8000000000]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#,
        "[",
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 8]);
        std::fs::write(&path, &bytes).unwrap();
        assert!(error(dir.path()).contains("expected a safetensors file"), "{header}");
    }
    std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(error(dir.path()).contains("expected a safetensors file"));
}
