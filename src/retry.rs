//! Whether to try again, and when.
//!
//! Each side sorts its errors into two kinds, nothing between: what time may mend, and what a person
//! must. Waiting grows exponentially up to a cap, with full jitter, so that many clients of one
//! server that comes back do not come back together.

use std::time::Duration;
use tokio::time::Instant;

/// How often trouble that goes on is told again.
const REMIND: Duration = Duration::from_secs(30);

/// What an error means for the one who met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Trying again may succeed, with nothing changed.
    Transient,
    /// Trying again will fail again, until somebody changes something.
    Definite,
}

impl Kind {
    /// In one word, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Definite => "definite",
        }
    }
}

/// How long to wait before the next attempt.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `first`, every later one at most twice the one before and `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// Counts a failure and says how long to wait: anything between nothing and the bound.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(fastrand::f64())
    }

    /// An attempt succeeded: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many attempts have failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn bound(&self) -> Duration {
        2_u32.checked_pow(self.failures).map_or(self.cap, |factor| self.first.saturating_mul(factor).min(self.cap))
    }
}

/// Whether it is time to tell of trouble: at once, and then every half a minute for as long as it goes on.
#[derive(Clone, Debug)]
pub struct Reminder {
    every: Duration,
    told: Option<Instant>,
}

impl Default for Reminder {
    fn default() -> Self {
        Self::every(REMIND)
    }
}

impl Reminder {
    /// At once, and then as often as this.
    pub const fn every(every: Duration) -> Self {
        Self { every, told: None }
    }

    /// Whether to tell of it now; then it counts as told.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.told.is_none_or(|told| now.duration_since(told) >= self.every);
        if is_due {
            self.told = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_at_once_and_again_while_it_goes_on() {
        let (mut reminder, start) = (Reminder::default(), Instant::now());
        let told: Vec<u64> = (0..100).filter(|second| reminder.is_due(start + Duration::from_secs(*second))).collect();
        assert_eq!(told, [0, 30, 60, 90]);
    }

    #[test]
    fn waits_double_up_to_the_cap_and_never_exceed_their_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        for failures in 0..100 {
            assert_eq!(backoff.failures(), failures);
            let bound = backoff.bound();
            let expected = 100_u64.checked_shl(failures).filter(|_| failures < 32).unwrap_or(u64::MAX).min(30_000);
            assert_eq!(bound, Duration::from_millis(expected));
            assert!(backoff.next_delay() <= bound);
        }
        backoff.reset();
        assert_eq!((backoff.bound(), backoff.failures()), (Duration::from_millis(100), 0));
    }

    #[test]
    fn the_two_kinds_have_two_words() {
        assert_eq!([Kind::Transient, Kind::Definite].map(Kind::label), ["transient", "definite"]);
    }

    #[test]
    fn two_that_fail_together_do_not_come_back_together() {
        let delays = |_| Backoff::new(Duration::from_secs(10), Duration::from_secs(10)).next_delay();
        let mut all: Vec<Duration> = (0..32).map(delays).collect();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 16);
    }
}
