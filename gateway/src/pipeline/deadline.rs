//! How long a query may take.

use super::GatewayError;
use std::time::Duration;
use tokio::time::Instant;

/// Set aside of the client's time for the way back, so that our DEADLINE_EXCEEDED arrives before the
/// client's own timer cancels the call (tonic's timers, on both sides, answer CANCELLED).
const WAY_BACK: Duration = Duration::from_millis(20);

/// Set aside, of what an unsure answer's replacement may take, to give the answer after all.
const FOR_WHAT_IS_READY: Duration = Duration::from_millis(50);

/// The moment by which a query must have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// The client's timeout from `accepted` on, at most `most`; `usual` if the client has none.
    pub(super) fn new(accepted: Instant, client: Option<Duration>, usual: Duration, most: Duration) -> Self {
        let allowed = client
            .map_or(usual, |asked| asked.saturating_sub(WAY_BACK.min(asked / 10)))
            .min(most);
        Self {
            at: accepted + allowed,
            allowed,
        }
    }
    /// The moment.
    pub(super) fn at(&self) -> Instant {
        self.at
    }
    /// The moment by which something that is ready must leave: shortly before.
    pub(super) fn nearly(&self) -> Instant {
        self.at - FOR_WHAT_IS_READY.min(self.allowed / 10)
    }
    /// The error for whoever passes it.
    pub(super) fn exceeded(&self) -> GatewayError {
        GatewayError::DeadlineExceeded {
            allowed: self.allowed,
        }
    }
}

/// Reads a `grpc-timeout` header: up to eight digits and a unit of `H M S m u n`.
///
/// # Errors
/// [`GatewayError::Invalid`] for anything else.
pub fn parse_grpc_timeout(text: &str) -> Result<Duration, GatewayError> {
    let invalid = || GatewayError::Invalid {
        field: "grpc-timeout",
        value: format!("{text:?}"),
        fix: "use one to eight digits and a unit of H M S m u n, e.g. 30S".to_owned(),
    };
    let unit = text.chars().next_back().ok_or_else(invalid)?;
    let digits = text.strip_suffix(unit).ok_or_else(invalid)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let amount: u64 = digits.parse().map_err(|_| invalid())?;
    match unit {
        'H' => Ok(Duration::from_secs(amount * 3600)),
        'M' => Ok(Duration::from_secs(amount * 60)),
        'S' => Ok(Duration::from_secs(amount)),
        'm' => Ok(Duration::from_millis(amount)),
        'u' => Ok(Duration::from_micros(amount)),
        'n' => Ok(Duration::from_nanos(amount)),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shorter_of_client_and_server_holds() {
        let now = Instant::now();
        let cap = Duration::from_secs(60);
        let usual = Duration::from_secs(30);
        assert_eq!(Deadline::new(now, None, usual, cap).at(), now + usual);
        assert_eq!(
            Deadline::new(now, Some(Duration::from_secs(3600)), usual, cap).at(),
            now + cap
        );
        assert_eq!(
            Deadline::new(now, Some(Duration::from_secs(1)), usual, cap).at(),
            now + Duration::from_millis(980)
        );
        assert_eq!(
            Deadline::new(now, Some(Duration::from_millis(50)), usual, cap).at(),
            now + Duration::from_millis(45)
        );
        let none = Deadline::new(now, Some(Duration::ZERO), usual, cap);
        assert_eq!((none.at(), none.nearly()), (now, now));
        let two = Deadline::new(now, Some(Duration::from_secs(2)), usual, cap);
        assert_eq!(two.at() - two.nearly(), Duration::from_millis(50));
    }

    #[test]
    fn units_are_grpcs() {
        for (text, millis) in [
            ("1H", 3_600_000),
            ("2M", 120_000),
            ("3S", 3000),
            ("4m", 4),
            ("5000u", 5),
            ("99999999n", 99),
        ] {
            assert_eq!(parse_grpc_timeout(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", "٣S", "1µ"] {
            assert!(parse_grpc_timeout(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(text in ".*", client in any::<u64>()) {
            let _any = parse_grpc_timeout(&text);
            let _any = Deadline::new(Instant::now(), Some(Duration::from_nanos(client)), Duration::MAX, Duration::from_secs(60));
        }
    }
}
