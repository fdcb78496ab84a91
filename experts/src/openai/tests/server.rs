//! The scripted server, and the pieces that servers' responses are made of.

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub(super) const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

/// What the server does with one connection.
#[derive(Clone)]
pub(super) enum Step {
    Send(Vec<u8>),
    /// Goes on only when the client has closed the connection, and says so.
    AwaitClose,
}

pub(super) struct Server {
    pub(super) base: String,
    pub(super) requests: Arc<AtomicUsize>,
    pub(super) received: mpsc::Receiver<(String, Value)>,
    pub(super) closed: mpsc::Receiver<()>,
}

pub(super) fn send(text: impl AsRef<[u8]>) -> Step {
    Step::Send(text.as_ref().to_vec())
}

/// A server that does the same for every connection.
pub(super) async fn serve(script: Vec<Step>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let (note, received) = mpsc::channel(16);
    let (say_closed, closed) = mpsc::channel(16);
    let counter = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(play(stream, script.clone(), note.clone(), say_closed.clone()));
        }
    });
    Server {
        base,
        requests,
        received,
        closed,
    }
}

async fn play(
    mut stream: TcpStream,
    script: Vec<Step>,
    note: mpsc::Sender<(String, Value)>,
    closed: mpsc::Sender<()>,
) {
    let Some(request) = read_request(&mut stream).await else {
        return;
    };
    let _ = note.try_send(request);
    for step in script {
        match step {
            Step::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                // Lets the client see this piece by itself.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Step::AwaitClose => {
                while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {}
                let _ = closed.try_send(());
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        if bytes.len() >= at + 4 + length {
            return Some((
                head,
                serde_json::from_slice(&bytes[at + 4..]).unwrap_or(Value::Null),
            ));
        }
    }
}

/// A whole response.
pub(super) fn response(status: &str, headers: &str, body: &str) -> Vec<Step> {
    vec![send(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))]
}

pub(super) fn streamed(events: &str) -> Vec<Step> {
    vec![send(STREAM_HEAD), send(events)]
}

pub(super) fn delta(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    )
}

pub(super) fn finish(reason: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    )
}
