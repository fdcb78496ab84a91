//! The hub, scripted on loopback.

use super::*;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
