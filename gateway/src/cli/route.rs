//! `referral route`: decides who should answer each query of a file, without a server.

use super::eval::counter;
use super::failure::Failure;
use super::options::{ConfigOptions, QueryField, RouterOptions};
use super::output::stdout;
use clap::Args;
use referral_router::Graph;
use referral_router::dataset::{Query, Reader};
use referral_router::graph::Descent;
use serde::{Serialize, Serializer};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Each line of the output: id, expert (the likeliest; the generalist answers where abstained is true),
confidence, in_scope (probability that the query is anything for these experts), out_of_scope, abstained,
windowed (the query is longer than what the router reads), probabilities by expert, latency_us. Where experts of the
configuration are routers of their own, they are followed: path is then the way to the expert, confidence the product
along it, abstained the last router's word, and the rest the top router's. With --argument, argument is the query as
Octopus v4 would put it to the expert, or null.

Example:
  echo '{\"id\": 1, \"query\": \"Is metformin safe with an eGFR of 28?\"}' > queries.jsonl
  referral route --input queries.jsonl";

/// Arguments of `referral route`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Rows {id, query}: JSON lines, .gz is read too
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// File to write instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also let the router write the query as it would put it to the expert (Octopus v4 only; slow)
    #[arg(long)]
    argument: bool,
    #[command(flatten)]
    field: QueryField,
    #[command(flatten)]
    router: RouterOptions,
}

/// A line of the output.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Vec<String>>,
    expert: &'a str,
    confidence: f32,
    in_scope: f32,
    out_of_scope: bool,
    abstained: bool,
    windowed: bool,
    #[serde(serialize_with = "as_map")]
    probabilities: &'a [(String, f32)],
    latency_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    argument: Option<Option<String>>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, config: &ConfigOptions) -> Result<(), Failure> {
    // The files are opened before the model is loaded: a typo is told at once.
    let queries = Reader::<Query>::open_as(&arguments.input, &arguments.field.fields())?;
    let settings = config.load()?.settings;
    let Some(path) = &arguments.output else {
        let router = arguments.router.load_graph(&settings)?;
        return route(
            &router,
            queries,
            arguments.argument,
            &mut BufWriter::new(stdout()),
        );
    };
    let named = |error| Failure::new(format!("cannot write {}: {error}", path.display()));
    let mut file = BufWriter::new(std::fs::File::create(path).map_err(named)?);
    let router = arguments.router.load_graph(&settings)?;
    route(&router, queries, arguments.argument, &mut file)
}

/// One query a forward pass, as a gateway would meet them, so that latencies mean something.
fn route(
    router: &Graph,
    queries: Reader<Query>,
    with_argument: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let bar = counter("queries routed")?;
    for query in queries {
        let query = query?;
        for descent in router.route(&[query.query.as_str()])? {
            let argument = with_argument.then(|| router.argument(&query.query)).transpose()?;
            let line = Line {
                argument,
                ..line(&query.id, &descent)
            };
            serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(out.flush()?)
}

fn line<'a>(id: &'a str, descent: &'a Descent) -> Line<'a> {
    let routing = &descent.routing;
    let below = descent.below.iter().map(|hop| hop.routing.latency);
    let latency: Duration = [routing.latency].into_iter().chain(below).sum();
    Line {
        id,
        path: (descent.depth() > 1).then(|| descent.path()),
        expert: descent.last().expert(),
        confidence: descent.confidence(),
        in_scope: routing.in_scope,
        out_of_scope: routing.out_of_scope,
        abstained: descent.last().abstained,
        windowed: routing.windowed,
        probabilities: &routing.probabilities,
        latency_us: u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        argument: None,
    }
}

fn as_map<S: Serializer>(pairs: &&[(String, f32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, probability)| (name, probability)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use referral_router::Routing;
    use referral_router::graph::Hop;

    #[test]
    fn a_line_holds_what_is_promised() {
        let routing = Routing {
            probabilities: vec![("b".to_owned(), 0.9), ("a".to_owned(), 0.1)],
            confidence: 0.9,
            in_scope: 0.75,
            out_of_scope: false,
            abstained: false,
            windowed: false,
            latency: Duration::from_micros(1_500),
        };
        let expected = concat!(
            r#"{"id":"7","expert":"b","confidence":0.9,"in_scope":0.75,"out_of_scope":false,"abstained":false,"windowed":false,"#,
            r#""probabilities":{"b":0.9,"a":0.1},"latency_us":1500}"#
        );
        let mut descent = Descent::from(routing);
        assert_eq!(serde_json::to_string(&line("7", &descent)).unwrap(), expected);
        let below = Routing {
            probabilities: vec![("c".to_owned(), 0.5)],
            confidence: 0.5,
            abstained: true,
            ..descent.routing.clone()
        };
        descent.below.push(Hop {
            node: "b".to_owned(),
            routing: below,
        });
        let line = serde_json::to_value(line("7", &descent)).unwrap();
        assert_eq!(line["path"], serde_json::json!(["b", "c"]));
        assert_eq!((&line["expert"], &line["abstained"]), (&"c".into(), &true.into()));
        assert_eq!(line["confidence"], 0.45f32);
        assert_eq!(line["latency_us"], 3_000);
    }
}
