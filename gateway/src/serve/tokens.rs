//! Whether router and configuration know the same experts.
//!
//! An expert without a functional token is never referred to, and queries for a token without an expert go to others:
//! both look like a router that errs, so they are told at start-up, with what to do. The generalist needs no token:
//! it answers where the router abstains. Of a pair of a strong and a weak expert, one needs a token.

use super::ServeError;
use crate::config::{ExpertSettings, Settings};
use referral_experts::ExpertKind;

/// Compares the configured experts with the router's tokens; warns instead of failing where that is allowed.
pub(super) fn check(settings: &Settings, tokens: &[String]) -> Result<(), ServeError> {
    let faults = faults(settings, tokens);
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

fn faults(settings: &Settings, tokens: &[String]) -> Vec<String> {
    let experts = &settings.experts;
    let has_token = |id: &str| tokens.iter().any(|token| token == id);
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
    let without_expert = tokens
        .iter()
        .filter(|token| !experts.iter().any(|expert| expert.id.as_str() == token.as_str()));
    without_token
        .map(|expert| {
            let id = &expert.id;
            format!(
                "experts.{id} has no functional token, so that no query is referred to it: `referral router add-expert \
                 --name {id} --description … --examples FILE --out DIR`, then router.directory: DIR"
            )
        })
        .chain(without_expert.map(|token| {
            format!(
                "the router's token {token} has no expert: configure experts.{token}, or `referral router \
                 remove-expert --name {token} --out DIR`, then router.directory: DIR"
            )
        }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PairSettings, PairThreshold};
    use crate::scripted::settings;

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
        assert!(check(&settings, &tokens(&settings)).is_ok());
    }

    #[test]
    fn an_expert_without_a_token_and_a_token_without_an_expert_are_named_with_what_to_do() {
        let (mut settings, _directory) = settings();
        let mut tokens = tokens(&settings);
        let orphan = tokens.remove(0);
        tokens.push("dermatology".to_owned());
        let said = check(&settings, &tokens).unwrap_err().to_string();
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
        assert!(check(&settings, &tokens).is_ok());
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
        assert!(check(&settings, &tokens).is_ok());
        pair.weak = settings.policy.generalist.clone();
        settings.pairs = vec![pair];
        assert!(check(&settings, &tokens).is_ok());
        settings.pairs.clear();
        assert!(check(&settings, &tokens).is_err());
    }
}
