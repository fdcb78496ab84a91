//! llama.cpp beside us: its own `llama-bench` and `llama-perplexity`, and a running `llama-server`.
//!
//! Nothing of it is linked in. Its programs are given by path and run with our number of threads and our lengths; a
//! server is asked over HTTP and counts for itself.

use super::super::failure::Failure;
use super::lm::{GENERATED, PROMPTS, Prefill, WINDOW, median};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// A run that takes longer has gone wrong.
const LONGEST: Duration = Duration::from_secs(300);

/// Where llama.cpp is.
#[derive(Debug, Clone, Args)]
pub(super) struct PeerOptions {
    /// llama.cpp's `llama-bench`, run in turns with the engine
    #[arg(long, value_name = "PATH")]
    llama_bench: Option<PathBuf>,
    /// llama.cpp's `llama-perplexity`, for the same text
    #[arg(
        long,
        value_name = "PATH",
        requires = "llama_bench",
        requires = "perplexity_data"
    )]
    llama_perplexity: Option<PathBuf>,
    /// GGUF files that it reads, such as the same model in its best format; the default is the model's own file
    #[arg(long, value_name = "FILE", requires = "llama_bench")]
    llama_model: Vec<PathBuf>,
    /// A running `llama-server`, http://HOST:PORT; start it with the engine's number of threads
    #[arg(long, value_name = "URL")]
    llama_server: Option<String>,
}

/// What was measured of one file or server.
#[derive(Debug, Serialize)]
pub(super) struct PeerReport {
    /// The model's type in llama.cpp's words, or the server's address.
    pub(super) name: String,
    file: Option<PathBuf>,
    pub(super) prefill: Vec<Prefill>,
    pub(super) decode_tokens_per_second: f64,
    pub(super) perplexity: Option<f64>,
}

enum Place {
    Programs {
        bench: PathBuf,
        perplexity: Option<PathBuf>,
        file: PathBuf,
        threads: usize,
    },
    Server {
        /// `HOST:PORT`.
        address: String,
    },
}

/// One file or server under measurement.
pub(super) struct Peer {
    place: Place,
    name: String,
    prefill: Vec<Vec<f64>>,
    decode: Vec<f64>,
    perplexity: Option<f64>,
}

/// The part of a line of `llama-bench -o json` that matters here.
#[derive(Debug, Deserialize)]
struct Line {
    model_type: String,
    n_prompt: usize,
    avg_ts: f64,
}

impl PeerOptions {
    /// The peers; none if nothing of llama.cpp is given.
    pub(super) fn open(&self, own_file: &Path, threads: usize) -> Result<Vec<Peer>, Failure> {
        let mut places = Vec::new();
        if let Some(bench) = &self.llama_bench {
            let own = [own_file.to_owned()];
            let files = if self.llama_model.is_empty() {
                &own[..]
            } else {
                &self.llama_model
            };
            places.extend(files.iter().map(|file| Place::Programs {
                bench: bench.clone(),
                perplexity: self.llama_perplexity.clone(),
                file: file.clone(),
                threads,
            }));
        }
        if let Some(url) = &self.llama_server {
            let address = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
            let address = address
                .filter(|a| a.contains(':') && !a.contains('/'))
                .ok_or_else(|| {
                    Failure::new(format!("--llama-server {url:?} is no address"))
                        .with_hint("write http://HOST:PORT")
                })?;
            places.push(Place::Server {
                address: address.to_owned(),
            });
        }
        let peer = |place| Peer {
            name: match &place {
                Place::Programs { file, .. } => file.display().to_string(),
                Place::Server { address } => address.clone(),
            },
            place,
            prefill: vec![Vec::new(); PROMPTS.len()],
            decode: Vec::new(),
            perplexity: None,
        };
        Ok(places.into_iter().map(peer).collect())
    }
}

impl Peer {
    /// Measures everything once.
    pub(super) fn round(&mut self) -> Result<(), Failure> {
        match &self.place {
            Place::Programs {
                bench, file, threads, ..
            } => {
                let prompts = PROMPTS.map(|p| p.to_string()).join(",");
                let mut command = Command::new(bench);
                command
                    .args([
                        "-o",
                        "json",
                        "-r",
                        "1",
                        "-p",
                        &prompts,
                        "-n",
                        &GENERATED.to_string(),
                    ])
                    .args(["-t", &threads.to_string(), "-m"])
                    .arg(file);
                let lines = lines(&run(&mut command)?.0)?;
                for line in lines {
                    self.name = line.model_type;
                    match PROMPTS.iter().position(|p| *p == line.n_prompt) {
                        Some(index) => {
                            if let Some(rates) = self.prefill.get_mut(index) {
                                rates.push(line.avg_ts);
                            }
                        }
                        None => self.decode.push(line.avg_ts),
                    }
                }
            }
            Place::Server { address } => {
                for (length, rates) in PROMPTS.into_iter().zip(&mut self.prefill) {
                    rates.push(ask(address, length, 1)?.prompt_per_second);
                }
                self.decode.push(ask(address, 1, GENERATED)?.predicted_per_second);
            }
        }
        Ok(())
    }

    /// Measures the perplexity of a text, where there is a program for it.
    pub(super) fn perplexity(&mut self, data: &Path, windows: usize) -> Result<(), Failure> {
        if let Place::Programs {
            perplexity: Some(program),
            file,
            threads,
            ..
        } = &self.place
        {
            let mut command = Command::new(program);
            command
                .args(["-c", &WINDOW.to_string(), "--chunks", &windows.to_string()])
                .args(["-t", &threads.to_string(), "-m"])
                .arg(file)
                .arg("-f")
                .arg(data);
            // Which of the two it writes to has changed between its versions.
            let (output, log) = run(&mut command)?;
            let estimate = final_estimate(&output).or_else(|| final_estimate(&log));
            self.perplexity = Some(
                estimate
                    .ok_or_else(|| Failure::new(format!("{} said no final estimate", program.display())))?,
            );
        }
        Ok(())
    }

    pub(super) fn finish(self) -> PeerReport {
        let prefill = PROMPTS.into_iter().zip(self.prefill);
        PeerReport {
            name: self.name,
            file: match self.place {
                Place::Programs { file, .. } => Some(file),
                Place::Server { .. } => None,
            },
            prefill: prefill
                .map(|(tokens, rates)| Prefill {
                    tokens,
                    tokens_per_second: median(rates),
                })
                .collect(),
            decode_tokens_per_second: median(self.decode),
            perplexity: self.perplexity,
        }
    }
}

/// Runs a program to its end and returns what it wrote to standard output and standard error.
fn run(command: &mut Command) -> Result<(String, String), Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |what: String| Failure::new(format!("{name}: {what}"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (output, log) = (read_beside(child.stdout.take()), read_beside(child.stderr.take()));
    let start = Instant::now();
    // A pipe ends with the program.
    let text = |pipe: &Receiver<std::io::Result<Vec<u8>>>| {
        let bytes = pipe.recv_timeout(LONGEST.saturating_sub(start.elapsed())).ok()?;
        Some(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    let (Some(output), Some(log)) = (text(&output), text(&log)) else {
        child.kill()?;
        child.wait()?;
        return Err(failed(format!("not done after {} seconds", LONGEST.as_secs())));
    };
    let (output, log, status) = (output?, log?, child.wait()?);
    if status.success() {
        return Ok((output, log));
    }
    let last = log.lines().last().unwrap_or_default();
    Err(failed(format!("{status}: {last}")))
}

/// Reads a pipe to its end on a thread of its own: a full one would keep the program from ending.
fn read_beside(pipe: Option<impl Read + Send + 'static>) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes));
        // Nobody waits any more if it took too long.
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

fn lines(json: &str) -> Result<Vec<Line>, Failure> {
    serde_json::from_str(json).map_err(|error| Failure::new(format!("llama-bench's report: {error}")))
}

/// The figure behind `Final estimate: PPL =`.
fn final_estimate(output: &str) -> Option<f64> {
    let (_, rest) = output.split_once("Final estimate: PPL =")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[derive(Debug, Deserialize)]
struct Completion {
    timings: Timings,
}

/// A server's own count.
#[derive(Debug, Deserialize)]
struct Timings {
    prompt_per_second: f64,
    predicted_per_second: f64,
}

/// Has a server read `prompt` tokens and write `generated`.
fn ask(address: &str, prompt: usize, generated: usize) -> Result<Timings, Failure> {
    let failed = |what: &dyn std::fmt::Display| Failure::new(format!("llama-server at {address}: {what}"));
    let tokens: Vec<usize> = (0..prompt).map(|i| 1000 + 7 * i).collect();
    let body = serde_json::json!({
        "prompt": tokens, "n_predict": generated, "ignore_eos": true, "cache_prompt": false, "temperature": 0,
    })
    .to_string();
    let mut places = address.to_socket_addrs().map_err(|error| failed(&error))?;
    let place = places.next().ok_or_else(|| failed(&"no such host"))?;
    let mut stream =
        TcpStream::connect_timeout(&place, Duration::from_secs(5)).map_err(|error| failed(&error))?;
    stream.set_read_timeout(Some(LONGEST))?;
    // HTTP/1.0: the answer ends with the connection and is never in chunks.
    let request = format!(
        "POST /completion HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .map_err(|error| failed(&error))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| failed(&"no answer"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split_whitespace().nth(1) != Some("200") {
        return Err(failed(&status));
    }
    let completion: Completion = serde_json::from_str(body).map_err(|error| failed(&error))?;
    Ok(completion.timings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_llama_cpp_are_read() {
        let json = r#"[
            {"model_type": "llama 256M Q4_0", "n_prompt": 512, "n_gen": 0, "avg_ts": 573.2, "stddev_ts": 0.0},
            {"model_type": "llama 256M Q4_0", "n_prompt": 0, "n_gen": 64, "avg_ts": 97.5, "stddev_ts": 0.0}
        ]"#;
        let lines = lines(json).unwrap();
        assert_eq!((lines[0].n_prompt, lines[0].avg_ts), (512, 573.2));
        assert_eq!((lines[1].n_prompt, lines[1].avg_ts), (0, 97.5));
        assert!(super::lines("error: no such file").is_err());
        let output = "[1]19.1,[2]20.3,\nFinal estimate: PPL = 20.3482 +/- 0.71\n";
        assert_eq!(final_estimate(output), Some(20.3482));
        assert_eq!(final_estimate("no figure"), None);
    }

    #[test]
    fn a_server_is_asked_over_http() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut piece = [0; 1024];
                let length = stream.read(&mut piece).unwrap();
                request.extend_from_slice(&piece[..length]);
            }
            let body = r#"{"timings": {"prompt_per_second": 500.5, "predicted_per_second": 90.25}}"#;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            String::from_utf8(request).unwrap()
        });
        let timings = ask(&address, 3, 9).unwrap();
        assert_eq!(
            (timings.prompt_per_second, timings.predicted_per_second),
            (500.5, 90.25)
        );
        let request = server.join().unwrap();
        assert!(
            request.contains("[1000,1007,1014]") && request.contains(r#""n_predict":9"#),
            "{request}"
        );
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let options = PeerOptions {
            llama_bench: None,
            llama_perplexity: None,
            llama_model: Vec::new(),
            llama_server: Some("localhost".to_owned()),
        };
        assert!(options.open(Path::new("m.gguf"), 2).is_err());
        assert!(run(&mut Command::new("/nonexistent/llama-bench")).is_err());
    }
}
