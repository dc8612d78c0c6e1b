//! Work that may run away: on a thread of its own, waited for so long and not longer.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::StructureError;
use super::limits::{COMPILE_SECONDS, COMPILING, STACK_BYTES};

/// Places for work in progress; what was given up keeps its place until it ends.
#[derive(Clone, Default)]
pub(super) struct Places {
    taken: Arc<(Mutex<usize>, Condvar)>,
}

/// A place, given back when dropped.
struct Place(Places);

impl Drop for Place {
    fn drop(&mut self) {
        let (taken, freed) = &*self.0.taken;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}

impl Places {
    /// What `work` gives, with a deep stack.
    ///
    /// # Errors
    /// When no place becomes free or the work does not end in time.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StructureError> {
        self.run_for(Duration::from_secs(COMPILE_SECONDS), work)
    }

    fn run_for<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StructureError> {
        let place = self.take(limit)?;
        let start = Instant::now();
        let (send, receive) = mpsc::sync_channel(1);
        let started =
            Builder::new().name("structure".to_owned()).stack_size(STACK_BYTES).spawn(move || {
                let done = work();
                drop(place);
                // Nobody listens any more when it took too long.
                let _ = send.send(done);
            });
        if started.is_err() {
            return Err(StructureError::Busy);
        }
        match receive.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(done) => Ok(done),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(StructureError::TooSlow(limit.as_secs())),
            // It panicked, which the library catches for its own part.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(StructureError::invalid("it could not be compiled"))
            }
        }
    }

    fn take(&self, limit: Duration) -> Result<Place, StructureError> {
        let (taken, freed) = &*self.taken;
        let count = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut count, wait) = freed
            .wait_timeout_while(count, limit, |count| *count >= COMPILING)
            .unwrap_or_else(PoisonError::into_inner);
        if wait.timed_out() {
            return Err(StructureError::Busy);
        }
        *count += 1;
        Ok(Place(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_given_up_and_keeps_its_place() {
        let places = Places::default();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        for _ in 0..COMPILING {
            let ended = ended.clone();
            let wait = move || ended.lock().unwrap().recv();
            let given_up = places.run_for(Duration::from_millis(10), wait);
            assert_eq!(given_up.unwrap_err(), StructureError::TooSlow(0));
        }
        let busy = places.run_for(Duration::from_millis(10), || 1);
        assert_eq!(busy.unwrap_err(), StructureError::Busy);
        drop(end);
        assert_eq!(places.run(|| 2), Ok(2));
    }

    #[test]
    fn a_panic_is_an_error_and_gives_its_place_back() {
        let places = Places::default();
        for _ in 0..=COMPILING {
            let panicked: Result<(), _> = places.run(|| panic!("on purpose"));
            assert!(matches!(panicked, Err(StructureError::Invalid { .. })), "{panicked:?}");
        }
    }
}
