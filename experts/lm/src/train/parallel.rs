//! One batch on several threads.
//!
//! A batch is split by rows and each part goes through the whole model on one thread. Splitting
//! every matrix product among the threads instead makes each wait for the other hundreds of times
//! a step, which on a busy machine costs a quarter of the speed. The number of parts is fixed, so
//! that the sums, and with them the trained values, don't depend on the number of threads.

use super::data::Batch;
use crate::{LmError, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Parts of a batch.
pub(super) const PARTS: usize = 4;

/// Threads that each work alone: candle's and this module's kernels spread over the pool they run
/// in, which for each of these has one thread.
pub(super) struct Workers(Vec<ThreadPool>);

impl Workers {
    /// `threads` workers, or as many as the machine runs at once.
    pub(super) fn new(threads: Option<usize>) -> Result<Self> {
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = |_| ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..threads.clamp(1, PARTS)).map(pool).collect::<Result<_, _>>();
        let invalid = |error: rayon::ThreadPoolBuildError| LmError::Invalid {
            field: "threads",
            value: threads.to_string(),
            fix: error.to_string(),
        };
        Ok(Self(pools.map_err(invalid)?))
    }

    /// Applies `work` to the batch's parts and gives the results in the parts' order.
    pub(super) fn map<T: Send>(
        &self,
        batch: &Batch,
        work: impl Fn(&Batch) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        self.map_parts(&batch.split(PARTS), work)
    }

    /// The same for parts that are split already.
    pub(super) fn map_parts<P: Sync, T: Send>(
        &self,
        parts: &[P],
        work: impl Fn(&P) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (work, workers) = (&work, self.0.len());
        let mut results: Vec<Option<Result<T>>> = std::thread::scope(|scope| {
            let running: Vec<_> = (self.0.iter().enumerate())
                .map(|(first, pool)| {
                    scope.spawn(move || {
                        let own = (first..parts.len()).step_by(workers);
                        pool.install(|| own.map(|index| (index, work(&parts[index]))).collect::<Vec<_>>())
                    })
                })
                .collect();
            let mut results: Vec<_> = parts.iter().map(|_| None).collect();
            for worker in running {
                let done = worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                for (index, result) in done {
                    results[index] = Some(result);
                }
            }
            results
        });
        results.drain(..).flatten().collect()
    }
}
