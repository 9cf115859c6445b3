//! How many requests in a second: a bucket that fills at a rate, and from which each request takes one.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A bucket of tokens.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    burst: f64,
    /// How full it was, and when that was.
    level: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// A full one: `burst` at once, and `per_second` afterwards.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst);
        Self { per_second: f64::from(per_second), burst, level: Mutex::new((burst, Instant::now())) }
    }

    /// Takes one, or says after how long there is one.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let (was, at) = *level;
        let filled = now.saturating_duration_since(at).as_secs_f64().mul_add(self.per_second, was).min(self.burst);
        let (left, taken) = if filled >= 1.0 {
            (filled - 1.0, Ok(()))
        } else {
            (filled, Err(Duration::from_secs_f64((1.0 - filled) / self.per_second)))
        };
        *level = (left, at.max(now));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_a_rate() {
        let (bucket, start) = (Bucket::new(4, 10), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        assert!((0..10).all(|_| bucket.take(after(1)).is_ok()));
        let wait = bucket.take(after(1)).expect_err("empty");
        assert!((Duration::from_millis(240)..=Duration::from_millis(250)).contains(&wait), "{wait:?}");
        assert!(bucket.take(after(260)).is_ok() && bucket.take(after(260)).is_err());
        // A clock that goes back gives nothing.
        assert!(bucket.take(start).is_err());
        // Never more than the burst, however long nobody came.
        assert_eq!((0..100).filter(|_| bucket.take(after(3_600_000)).is_ok()).count(), 10);
    }
}
