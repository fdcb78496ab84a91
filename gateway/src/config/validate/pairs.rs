//! Pairs of a strong and a weak expert: who they are, and the one rule by which one of them is chosen.

use super::super::check::suggestion;
use super::super::raw::{RawPair, RawPrice, RawThreshold};
use super::super::settings::{ExpertSettings, PairSettings, PairThreshold};
use super::Problems;
use referral_router::policy::pair::threshold_for_price;
use std::path::PathBuf;

pub(super) fn pairs(
    raw: Vec<RawPair>,
    experts: &[ExpertSettings],
    problems: &mut Problems,
) -> Vec<PairSettings> {
    let workers: Vec<&str> = experts
        .iter()
        .filter(|expert| expert.is_worker())
        .map(|expert| expert.id.as_str())
        .collect();
    let mut seen: Vec<String> = Vec::new();
    let mut settled = Vec::with_capacity(raw.len());
    for (index, pair) in raw.into_iter().enumerate() {
        let index = index.to_string();
        let at = |key: &'static str| ["policy", "pairs", &index, key].map(str::to_owned);
        for (key, name) in [("strong", &pair.strong), ("weak", &pair.weak)] {
            let path = at(key);
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            if !workers.contains(&name.as_str()) {
                let hint = suggestion(name, &workers);
                problems.add(
                    &path,
                    format!("no expert that answers is called {name:?}: {hint}"),
                );
            } else if seen.contains(name) {
                let message = if pair.strong == pair.weak {
                    format!("{name} is strong and weak at once: name two experts")
                } else {
                    format!("{name} is in another pair: keep it in one")
                };
                problems.add(&path, message);
            }
            seen.push(name.clone());
        }
        let threshold = threshold(&index, &pair, experts, problems);
        settled.push(PairSettings {
            strong: pair.strong,
            weak: pair.weak,
            gain_model: pair.gain_model.map(PathBuf::from),
            threshold,
            cascade: pair.cascade.map(|cascade| cascade.min_mean_log_probability),
        });
    }
    settled
}

fn threshold(
    index: &str,
    pair: &RawPair,
    experts: &[ExpertSettings],
    problems: &mut Problems,
) -> PairThreshold {
    match &pair.threshold {
        RawThreshold {
            share: Some(share),
            price: None,
            gain: None,
        } => PairThreshold::Share(*share),
        RawThreshold {
            share: None,
            price: Some(price),
            gain: None,
        } => {
            let by_cards = extra_price(pair, price, experts);
            if price.extra.is_none() && by_cards.is_some_and(|extra| extra <= 0.0) {
                let message = format!(
                    "{} costs no more than {} by their cards (price_per_million_input and _output): give `extra`",
                    pair.strong, pair.weak
                );
                problems.add(&["policy", "pairs", index, "threshold", "price"], message);
            }
            let extra = price.extra.or(by_cards).unwrap_or_default();
            PairThreshold::Gain(threshold_for_price(extra, price.worth))
        }
        RawThreshold {
            share: None,
            price: None,
            gain: Some(gain),
        } => PairThreshold::Gain(*gain),
        _ => {
            problems.add(
                &["policy", "pairs", index, "threshold"],
                "give exactly one of share, price and gain".to_owned(),
            );
            PairThreshold::Gain(f32::INFINITY)
        }
    }
}

/// What a usual answer of the strong expert costs more, by the cards; `None` if one of the two is not configured.
fn extra_price(pair: &RawPair, price: &RawPrice, experts: &[ExpertSettings]) -> Option<f64> {
    let cost = |name: &str| {
        let card = &experts.iter().find(|expert| expert.id.as_str() == name)?.card;
        let read = card.price_per_million_input * f64::from(price.prompt_tokens);
        let written = card.price_per_million_output * f64::from(price.answer_tokens);
        Some((read + written) / 1e6)
    };
    Some(cost(&pair.strong)? - cost(&pair.weak)?)
}
