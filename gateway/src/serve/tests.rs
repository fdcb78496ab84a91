use super::*;
use crate::scripted::settings;

#[tokio::test]
async fn a_taken_port_names_address_setting_and_flag() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut settings, _directory) = settings();
    settings.server.grpc_address.set_port(0);
    settings.server.http_address = holder.local_addr().unwrap();
    let Err(error) = Gateway::open(settings).await else {
        panic!("it opened a port that is taken")
    };
    let said = error.to_string();
    for word in [
        &holder.local_addr().unwrap().to_string(),
        "server.http_address",
        "--http-address",
    ] {
        assert!(said.contains(word), "{said}");
    }
}

#[tokio::test]
async fn a_missing_model_is_named_and_draining_an_unloaded_gateway_ends() {
    let (mut settings, directory) = settings();
    settings.server.grpc_address.set_port(0);
    settings.server.http_address.set_port(0);
    for model in settings.models.values_mut() {
        let path = directory.path().join("nowhere.gguf");
        model.spec.source = referral_lm::fetch::Source(format!("file:{}", path.display()));
        model.spec.sha256 = None;
    }
    let mut gateway = Gateway::open(settings).await.unwrap();
    let error = gateway.load().await.unwrap_err();
    assert!(error.to_string().contains("smollm2-135m-instruct"), "{error}");
    assert!(gateway.drain().await);
}
