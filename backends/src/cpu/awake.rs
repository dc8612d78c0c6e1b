//! Threads that stay awake during a pass.
//!
//! A pass is hundreds of pieces of work that the threads share, and between them a little that one does
//! alone. Threads of Rayon's that find nothing to do for some microseconds go to sleep, and waking one takes
//! as long as it would have needed for its share.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long a thread looks for work in vain: longer than anything takes that one of them does alone.
const PATIENCE: Duration = Duration::from_micros(200);

/// Computes on one of the pool's threads while the others look for what it shares.
pub(super) fn run<R: Send>(compute: impl FnOnce() -> R + Send) -> R {
    let is_done = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let here = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            // On this one it would wait for itself.
            if Some(thread.index()) != here {
                look_for_work(is_done);
            }
        });
        let result = compute();
        is_done.store(true, Ordering::Relaxed);
        result
    })
}

fn look_for_work(is_done: &AtomicBool) {
    let mut idle_since = Instant::now();
    while !is_done.load(Ordering::Relaxed) && idle_since.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(Yield::Executed) => idle_since = Instant::now(),
            _ => spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn shared_work_is_done_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let sums: Vec<u64> = pool(threads).install(|| {
                run(|| (0..50).map(|i| (0..1000u64).into_par_iter().map(|n| n * i).sum()).collect())
            });
            assert!(sums.iter().zip(0..).all(|(&sum, i)| sum == 499_500 * i), "{threads} threads");
        }
    }

    #[test]
    fn threads_that_find_nothing_stop_looking() {
        let is_done = AtomicBool::new(false);
        // Returns, though nothing is ever done.
        pool(2).install(|| look_for_work(&is_done));
        assert!(!is_done.into_inner());
    }

    #[test]
    fn passes_within_passes_end() {
        let inner = || run(|| (0..100u64).into_par_iter().sum::<u64>());
        let sums: Vec<u64> =
            pool(2).install(|| run(|| (0..20).into_par_iter().map(|_| inner()).collect()));
        assert_eq!(sums, [4950; 20]);
    }

    #[test]
    fn a_panic_comes_through() {
        let caught =
            std::panic::catch_unwind(|| pool(2).install(|| run(|| -> u8 { panic!("inside") })));
        assert!(caught.is_err());
    }
}
