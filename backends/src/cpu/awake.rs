//! Threads that stay awake during a pass.
//!
//! A pass is hundreds of pieces of work that the threads share, and between them a little that one does
//! alone. Threads of Rayon's that find nothing to do for some microseconds go to sleep, and waking one takes
//! as long as it would have needed for its share. So those that have nothing to do, and wait for no one
//! either, look for work as long as the pass lasts and they find some now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long a thread looks in vain: longer than a pass is silent between two things it shares. Then it
/// sleeps until Rayon wakes it, for the rest of the pass.
///
/// Rayon may hand looking to a thread that waits for the end of something it shared, in this pass, and
/// that goes on only when it returns: if looking had no end of its own, both would wait for ever.
const PATIENCE: Duration = Duration::from_micros(200);
/// How often at least: who has given way to others for that long has not looked much.
const LEAST_TRIES: usize = 16;

/// Passes of this process.
static PASSES: AtomicUsize = AtomicUsize::new(0);

/// One of them; holds whether it is over.
struct Pass(Arc<AtomicBool>);

impl Pass {
    fn begin() -> Self {
        PASSES.fetch_add(1, Ordering::Relaxed);
        Self(Arc::default())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        PASSES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Computes on one of the pool's threads while the others look for what it shares.
pub(super) fn run<R: Send>(compute: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| {
        let pass = Pass::begin();
        let (is_over, here) = (Arc::clone(&pass.0), rayon::current_thread_index());
        // Not in the scope: it would end no sooner than a thread that is busy elsewhere had time to look.
        rayon::spawn_broadcast(move |thread| {
            // On this one it would wait for itself.
            if Some(thread.index()) != here {
                look_for_work(&is_over, &PASSES);
            }
        });
        compute()
    })
}

/// Not beside another pass: a thread that waits for its own would do work of the other one for as long as
/// there is some.
fn look_for_work(is_over: &AtomicBool, passes: &AtomicUsize) {
    let (mut found, mut in_vain) = (Instant::now(), 0);
    while !is_over.load(Ordering::Relaxed) && passes.load(Ordering::Relaxed) <= 1 {
        if rayon::yield_now() == Some(Yield::Executed) {
            (found, in_vain) = (Instant::now(), 0);
        } else if in_vain >= LEAST_TRIES && found.elapsed() > PATIENCE {
            return;
        } else {
            in_vain += 1;
            // For whoever else wants this core.
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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
    fn work_is_done_unless_the_pass_is_over_or_another_began() {
        for (is_over, passes, is_done) in [(false, 1, true), (true, 1, false), (false, 2, false)] {
            let done = Arc::new(AtomicBool::new(false));
            // The only thread there is looks, so nobody else does it.
            let was_done = pool(1).install(|| {
                let done_too = Arc::clone(&done);
                rayon::spawn(move || done_too.store(true, Ordering::Relaxed));
                look_for_work(&AtomicBool::new(is_over), &AtomicUsize::new(passes));
                done.load(Ordering::Relaxed)
            });
            assert_eq!(was_done, is_done, "{is_over}, {passes}");
        }
    }

    #[test]
    fn a_thread_that_waits_for_what_it_shared_comes_back_from_looking() {
        let (looks, has_looked) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let is_over_too = Arc::clone(&is_over);
        std::thread::spawn(move || {
            pool(2).install(|| {
                // Both threads are to look. This one finds that only in the join, when it has done its
                // half and waits for the other's, which ends no sooner.
                let here = rayon::current_thread_index();
                rayon::spawn_broadcast(move |thread| {
                    if Some(thread.index()) == here {
                        looks.send(()).unwrap();
                    }
                    look_for_work(&is_over_too, &AtomicUsize::new(1));
                });
                let (shared, is_shared) = mpsc::channel();
                rayon::join(
                    move || is_shared.recv().unwrap(),
                    move || {
                        shared.send(()).unwrap();
                        has_looked.recv().unwrap();
                    },
                );
            });
            done.send(()).unwrap();
        });
        let ended = is_done.recv_timeout(Duration::from_secs(60));
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(ended, Ok(()));
    }

    #[test]
    fn passes_within_passes_end() {
        let inner = || run(|| (0..100u64).into_par_iter().sum::<u64>());
        let sums: Vec<u64> =
            pool(2).install(|| run(|| (0..20).into_par_iter().map(|_| inner()).collect()));
        assert_eq!(sums, [4950; 20]);
    }

    #[test]
    fn a_pass_ends_while_another_one_lasts() {
        let (pool, (begun, has_begun), (end, may_end)) =
            (pool(2), mpsc::channel(), mpsc::channel());
        let share = || (0..1000u64).into_par_iter().sum::<u64>();
        std::thread::scope(|threads| {
            let long = threads.spawn(|| {
                pool.install(|| {
                    run(move || {
                        begun.send(share()).unwrap();
                        may_end.recv().unwrap()
                    })
                })
            });
            assert_eq!(has_begun.recv(), Ok(499_500));
            let short: u64 = pool.install(|| run(|| (0..100).map(|_| share()).sum()));
            assert_eq!(short, 49_950_000);
            end.send(7).unwrap();
            assert_eq!(long.join().unwrap(), 7);
        });
    }

    #[test]
    fn a_panic_comes_through() {
        let caught =
            std::panic::catch_unwind(|| pool(2).install(|| run(|| -> u8 { panic!("inside") })));
        assert!(caught.is_err());
    }
}
