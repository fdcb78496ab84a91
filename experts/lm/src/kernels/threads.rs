//! Sharing work between the threads that candle's products keep warm: one pool for all arithmetic, so that
//! nothing competes with itself for the cores.

use candle_core::utils::barrier_pool;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// Elements below which waking other threads costs more than it saves.
const PARALLEL_ELEMENTS: usize = 16 * 1024;

/// Threads that arithmetic is shared between.
pub fn compute_threads() -> usize {
    barrier_pool().n_workers() + 1
}

/// Calls `compute` with ranges that together are `0..units`, on all threads or, if not `worthwhile`, here.
pub(crate) fn share(units: usize, worthwhile: bool, compute: impl Fn(Range<usize>) + Sync) {
    if worthwhile && units > 1 {
        on_all_threads(units, compute);
    } else if units > 0 {
        compute(0..units);
    }
}

/// A panic of `compute` is carried out of the pool, whose lock it would otherwise poison: every later product would fail.
fn on_all_threads(units: usize, compute: impl Fn(Range<usize>) + Sync) {
    let panic = Mutex::new(None);
    barrier_pool().execute_chunked(units, |range| {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| compute(range))) {
            panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(payload);
        }
    });
    if let Some(payload) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(payload);
    }
}

/// Calls `compute` with index and values of every row, on several threads if there is enough to do.
pub(crate) fn each_row<T: Send>(values: &mut [T], width: usize, compute: impl Fn(usize, &mut [T]) + Sync) {
    if width == 0 {
        return;
    }
    let elements = size_of_val(values) / size_of::<f32>();
    if elements < PARALLEL_ELEMENTS {
        values
            .chunks_exact_mut(width)
            .enumerate()
            .for_each(|(index, row)| compute(index, row));
        return;
    }
    let rows = values.len() / width;
    let rows_per_part = (rows * (PARALLEL_ELEMENTS / 4)).div_ceil(elements).max(1);
    let parts: Vec<_> = values.chunks_mut(rows_per_part * width).map(Mutex::new).collect();
    on_all_threads(parts.len(), |range| {
        for (part, rows) in parts.iter().enumerate().take(range.end).skip(range.start) {
            // Every part is locked once, by the thread that computes it.
            let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
            for (index, row) in rows.chunks_exact_mut(width).enumerate() {
                compute(part * rows_per_part + index, row);
            }
        }
    });
}

/// A matrix that several threads write different places of.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a borrowed `&mut [f32]`; `at` leaves it to its callers that no two touch the same values.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self {
            start: values.as_mut_ptr(),
            len: values.len(),
            lifetime: PhantomData,
        }
    }

    /// Where the values from `index` on are.
    ///
    /// # Safety
    /// `index` must be within the matrix, and while the pointer is used no other thread may use the values
    /// that are reached through it.
    pub(super) unsafe fn at(&self, index: usize) -> *mut f32 {
        debug_assert!(index < self.len);
        // SAFETY: within the allocation, by the caller's word.
        unsafe { self.start.add(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_panic_leaves_the_pool_usable() {
        let fails = || share(64, true, |range| assert!(!range.contains(&63), "as meant"));
        assert!(catch_unwind(fails).is_err());
        let done = AtomicUsize::new(0);
        share(64, true, |range| {
            done.fetch_add(range.len(), Ordering::SeqCst);
        });
        assert_eq!(done.into_inner(), 64);
    }
}
