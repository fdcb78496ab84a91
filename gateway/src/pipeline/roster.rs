//! The experts that are configured, and what is known of their health.

use referral_experts::{Expert, Health, Residency};
use referral_router::policy::Candidate;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// A health check that takes longer counts as failed.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
const NOT_CHECKED: &str = "not checked yet";

struct Seat {
    expert: Arc<dyn Expert>,
    health: RwLock<Health>,
}

/// The experts, in configured order. Health is the last observation, so that no query waits for a check.
pub(super) struct Roster {
    seats: Vec<Seat>,
}

impl Roster {
    /// Experts are unavailable until the first [`Self::refresh`].
    pub(super) fn new(experts: Vec<Arc<dyn Expert>>) -> Self {
        let seat = |expert| Seat {
            expert,
            health: RwLock::new(Health::Unavailable(NOT_CHECKED.to_owned())),
        };
        Self {
            seats: experts.into_iter().map(seat).collect(),
        }
    }

    /// Asks every expert for its health, all at once.
    pub(super) async fn refresh(&self) {
        let checks = self.seats.iter().map(|seat| async {
            let health = tokio::time::timeout(CHECK_LIMIT, seat.expert.health()).await.unwrap_or_else(|_| {
                Health::Unavailable(format!("no word within {}", humantime::format_duration(CHECK_LIMIT)))
            });
            let mut last = seat.health.write().unwrap_or_else(PoisonError::into_inner);
            let comes_up = health == Health::Ready && *last == Health::Unavailable(NOT_CHECKED.to_owned());
            if comes_up {
                *last = health;
            } else if *last != health {
                tracing::info!(expert = %seat.expert.id(), from = ?*last, to = ?health, "expert health changed");
                *last = health;
            }
        });
        futures::future::join_all(checks).await;
    }

    /// The expert of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<dyn Expert>> {
        self.seats
            .iter()
            .map(|seat| &seat.expert)
            .find(|expert| expert.id().as_str() == name)
    }

    /// Everybody, with the last observed health.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<dyn Expert>, Health)> {
        self.seats.iter().map(|seat| {
            (
                &seat.expert,
                seat.health.read().unwrap_or_else(PoisonError::into_inner).clone(),
            )
        })
    }

    /// What the policy may choose from.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        self.iter()
            .map(|(expert, health)| Candidate {
                id: expert.id().to_string(),
                is_ready: health == Health::Ready,
                is_external: expert.card().residency == Residency::External,
            })
            .collect()
    }
}
