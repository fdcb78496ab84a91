//! The memory for keys and values: one bound for all sequences and kept prompt heads of an engine.
//!
//! A sequence reserves what its prompt and longest answer can take before it joins the batch, so no sequence that
//! runs is ever stopped for want of memory. Pages are taken as they are needed; the reservation is the bound, and
//! counts pages that sequences share with a prompt head more than once.

use prometheus::IntGauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory of one engine.
pub(super) struct Pool {
    capacity: usize,
    used: AtomicUsize,
    gauge: IntGauge,
}

/// A part of a pool, given back when dropped.
pub(super) struct Reservation {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Pool {
    /// `gauge` shows the bytes reserved.
    pub(super) fn new(capacity: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            used: AtomicUsize::new(0),
            gauge,
        })
    }

    /// Bytes not reserved.
    pub(super) fn free(&self) -> usize {
        self.capacity.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    /// Reserves `bytes`; `None` if there are fewer.
    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.capacity);
        let before = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .ok()?;
        self.gauge.set((before + bytes) as i64);
        Some(Reservation {
            pool: Arc::clone(self),
            bytes,
        })
    }
}

impl Reservation {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let before = self.pool.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.pool.gauge.set((before - self.bytes) as i64);
    }
}

/// The longest sequence, of at most `most` tokens, whose keys and values (`bytes_of` their number) fit `capacity`.
pub(super) fn longest(capacity: usize, most: usize, bytes_of: impl Fn(usize) -> usize) -> usize {
    let (mut fits, mut above) = (0, most + 1);
    while fits + 1 < above {
        let middle = fits.midpoint(above);
        if bytes_of(middle) <= capacity {
            fits = middle;
        } else {
            above = middle;
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_given_back() {
        let gauge = IntGauge::new("used", "Used.").unwrap();
        let pool = Pool::new(10, gauge.clone());
        let one = pool.reserve(6).unwrap();
        assert!(pool.reserve(5).is_none() && pool.reserve(usize::MAX).is_none());
        let two = pool.reserve(4).unwrap();
        assert_eq!((gauge.get(), pool.free(), one.bytes()), (10, 0, 6));
        drop(one);
        assert_eq!((gauge.get(), pool.free()), (4, 6));
        drop(two);
        assert_eq!((gauge.get(), pool.free()), (0, 10));
    }

    #[test]
    fn the_longest_sequence_is_the_last_that_fits() {
        let pages = |tokens: usize| tokens.div_ceil(32) * 100;
        assert_eq!(longest(299, 1000, pages), 64);
        assert_eq!(longest(300, 1000, pages), 96);
        assert_eq!(longest(1_000_000, 1000, pages), 1000);
        assert_eq!(longest(99, 1000, pages), 0);
    }
}
