//! Whether router and configuration know the same experts.
//!
//! An expert without a functional token is never referred to, and queries for a token without an expert go to others:
//! both look like a router that errs, so they are told at start-up, with what to do. The generalist needs no token:
//! it answers where the router abstains. Of a pair of a strong and a weak expert, one needs a token. Where experts are
//! routers of their own, a token of any router that is reached from the top counts.

use super::ServeError;
use crate::config::{Backend, ExpertSettings, Settings};
use referral_experts::ExpertKind;
use referral_router::Graph;

/// Compares the configured experts with the routers' tokens; warns instead of failing where that is allowed.
pub(super) fn check(settings: &Settings, graph: &Graph) -> Result<(), ServeError> {
    let faults = faults(settings, graph);
    if faults.is_empty() {
        return Ok(());
    }
    if settings.router.allow_unmatched {
        for fault in faults {
            tracing::warn!("{fault}");
        }
        return Ok(());
    }
    Err(ServeError::Tokens(faults))
}

fn faults(settings: &Settings, graph: &Graph) -> Vec<String> {
    let experts = &settings.experts;
    let reached = graph.reached();
    let has_token = |id: &str| reached.contains_key(id);
    let is_reached = |expert: &ExpertSettings| {
        let id = expert.id.as_str();
        let pair = settings
            .pairs
            .iter()
            .find(|pair| pair.strong == id || pair.weak == id);
        let by_pair = pair.is_some_and(|pair| {
            [&pair.strong, &pair.weak]
                .into_iter()
                .any(|name| has_token(name) || *name == settings.policy.generalist)
        });
        expert.kind == ExpertKind::Generalist || has_token(id) || by_pair
    };
    let without_token = experts.iter().filter(|expert| !is_reached(expert));
    let is_configured = |name: &str| experts.iter().any(|expert| expert.id.as_str() == name);
    let without_expert = reached.iter().filter(|(token, _)| !is_configured(token));
    without_token
        .map(|expert| {
            let id = &expert.id;
            if settings.router.backend != Backend::Functional {
                return format!(
                    "experts.{id} has none of Octopus v4's functions, so that no query is referred to it: map one to it in \
                     router.octopus.experts, or remove it with experts.{id}: null"
                );
            }
            format!(
                "experts.{id} has no functional token, so that no query is referred to it: `referral router add-expert \
                 --name {id} --description … --examples FILE --out DIR`, then router.directory: DIR"
            )
        })
        .chain(without_expert.map(|(token, path)| stranger(token, path)))
        .collect()
}

/// A token without an expert, with the routers that refer to it.
fn stranger(token: &str, path: &[String]) -> String {
    let (whose, option, setting) = match path {
        [.., node, _] => (
            format!("the token {token} of the router {node} ({})", path.join(" → ")),
            format!("--router DIR-OF-{node} "),
            format!("experts.{node}.router.directory"),
        ),
        _ => (
            format!("the router's token {token}"),
            String::new(),
            "router.directory".to_owned(),
        ),
    };
    format!(
        "{whose} has no expert: configure experts.{token}, or `referral router remove-expert {option}--name {token} \
         --out DIR`, then {setting}: DIR"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PairSettings, PairThreshold};
    use crate::scripted::settings;
    use referral_router::graph::{Decider, Node};
    use referral_router::{RouterError, Routing};
    use std::sync::Arc;

    /// A router that knows these experts.
    struct Known(Vec<String>);

    impl Decider for Known {
        fn experts(&self) -> &[String] {
            &self.0
        }
        fn version(&self) -> &str {
            "known"
        }
        fn route(&self, _: &[&str]) -> Result<Vec<Routing>, RouterError> {
            Ok(Vec::new())
        }
    }

    fn knowing(tokens: &[String]) -> Graph {
        Graph::single(Arc::new(Known(tokens.to_vec())))
    }

    fn tokens(settings: &Settings) -> Vec<String> {
        let specialists = settings
            .experts
            .iter()
            .filter(|expert| expert.kind != ExpertKind::Generalist);
        specialists.map(|expert| expert.id.to_string()).collect()
    }

    #[test]
    fn the_same_names_on_both_sides_are_no_fault_and_the_generalist_needs_no_token() {
        let (settings, _directory) = settings();
        assert!(check(&settings, &knowing(&tokens(&settings))).is_ok());
    }

    #[test]
    fn an_expert_without_a_token_and_a_token_without_an_expert_are_named_with_what_to_do() {
        let (mut settings, _directory) = settings();
        let mut tokens = tokens(&settings);
        let orphan = tokens.remove(0);
        tokens.push("dermatology".to_owned());
        let said = check(&settings, &knowing(&tokens)).unwrap_err().to_string();
        for words in [
            format!("experts.{orphan} has no functional token"),
            format!("add-expert --name {orphan}"),
            "token dermatology has no expert".to_owned(),
            "remove-expert --name dermatology".to_owned(),
            "router.allow_unmatched".to_owned(),
        ] {
            assert!(said.contains(&words), "{said} does not say {words}");
        }
        settings.router.allow_unmatched = true;
        assert!(check(&settings, &knowing(&tokens)).is_ok());
    }

    #[test]
    fn of_a_pair_one_needs_a_token() {
        let (mut settings, _directory) = settings();
        let mut tokens = tokens(&settings);
        let strong = tokens.remove(0);
        let mut pair = PairSettings {
            strong,
            weak: tokens[0].clone(),
            gain_model: None,
            threshold: PairThreshold::Share(0.5),
            cascade: None,
        };
        settings.pairs = vec![pair.clone()];
        assert!(check(&settings, &knowing(&tokens)).is_ok());
        pair.weak = settings.policy.generalist.clone();
        settings.pairs = vec![pair];
        assert!(check(&settings, &knowing(&tokens)).is_ok());
        settings.pairs.clear();
        assert!(check(&settings, &knowing(&tokens)).is_err());
    }

    #[test]
    fn a_router_below_brings_its_experts_and_is_named_where_it_errs() {
        let (settings, _directory) = settings();
        let mut tokens = tokens(&settings);
        let below = tokens.split_off(3);
        let graph = |below: Vec<String>| {
            let node = Node {
                name: tokens[0].clone(),
                decider: Arc::new(Known(below)),
                otherwise: "generalist".to_owned(),
                min_confidence: None,
            };
            Graph::new(Arc::new(Known(tokens.clone())), None, vec![node], 2).unwrap()
        };
        assert!(check(&settings, &graph(below.clone())).is_ok());
        let strange = [below, vec!["dermatology".to_owned()]].concat();
        let said = check(&settings, &graph(strange)).unwrap_err().to_string();
        let path = format!(
            "the token dermatology of the router {0} ({0} → dermatology)",
            tokens[0]
        );
        assert!(said.contains(&path), "{said}");
        assert!(
            said.contains(&format!("experts.{}.router.directory", tokens[0])),
            "{said}"
        );
    }
}
