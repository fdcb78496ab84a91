//! How many queries may be in flight, over all methods and both ports.
//!
//! A place is held until the answer has ended or was dropped, not until its headers left: a stream is
//! the work. Whoever finds no place is told so at once; waiting is the client's choice.

use super::GatewayError;
use prometheus::IntGauge;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// The places.
pub(super) struct Admission {
    places: Arc<Semaphore>,
    limit: usize,
    in_flight: IntGauge,
}

/// One or more places; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: OwnedSemaphorePermit,
    in_flight: IntGauge,
}

impl Admission {
    /// `limit` places; `in_flight` shows how many are taken.
    pub(super) fn new(limit: usize, in_flight: IntGauge) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
            in_flight,
        }
    }

    /// Takes `count` places (all there are, if there are fewer).
    ///
    /// # Errors
    /// [`GatewayError::Overloaded`] if they are not free, [`GatewayError::Draining`] once closed.
    pub(super) fn admit(&self, count: usize) -> Result<Place, GatewayError> {
        let count = u32::try_from(count.min(self.limit)).unwrap_or(u32::MAX);
        match Arc::clone(&self.places).try_acquire_many_owned(count) {
            Ok(permit) => {
                self.in_flight.add(i64::from(count));
                Ok(Place {
                    permit,
                    in_flight: self.in_flight.clone(),
                })
            }
            Err(TryAcquireError::NoPermits) => Err(GatewayError::Overloaded { limit: self.limit }),
            Err(TryAcquireError::Closed) => Err(GatewayError::Draining),
        }
    }

    /// Admits nobody from now on; who has a place keeps it.
    pub(super) fn close(&self) {
        self.places.close();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight
            .sub(i64::try_from(self.permit.num_permits()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_come_back() {
        let gauge = IntGauge::new("in_flight", "in flight").unwrap();
        let admission = Admission::new(2, gauge.clone());
        let one = admission.admit(1).unwrap();
        let two = admission.admit(1).unwrap();
        assert!(matches!(
            admission.admit(1),
            Err(GatewayError::Overloaded { limit: 2 })
        ));
        assert_eq!(gauge.get(), 2);
        drop(one);
        assert_eq!(gauge.get(), 1);
        assert!(matches!(admission.admit(2), Err(GatewayError::Overloaded { .. })));
        drop(two);
        drop(admission.admit(9).unwrap());
        assert_eq!(gauge.get(), 0);
        admission.close();
        assert!(matches!(admission.admit(1), Err(GatewayError::Draining)));
    }
}
