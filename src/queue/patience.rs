//! How long something that is away is left alone, and how often that is told.
//!
//! Several attempts are under way at once, and where the other side is away all of them fail. That is one failure: what was
//! begun before it was known tells nothing new, however late its answer comes. So the pause grows with how long the other
//! side is away, and not with how much was on its way to it.

use crate::retry::{Backoff, Reminder};
use std::time::Duration;
use tokio::time::Instant;

/// The first and the longest bound of a pause.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// With what knowledge something was begun: how many failures there had been by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt(u64);

/// A failure that counts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setback {
    /// It is left alone for so long now.
    pub(super) pause: Duration,
    /// Whether that is to be told.
    pub(super) is_told: bool,
}

/// The account of one dependency.
pub(super) struct Patience {
    backoff: Backoff,
    setbacks: u64,
    until: Option<Instant>,
    reminder: Reminder,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            setbacks: 0,
            until: None,
            reminder: Reminder::default(),
        }
    }

    /// To be asked for before an attempt, and given back with how it ended.
    pub(super) fn attempt(&self) -> Attempt {
        Attempt(self.setbacks)
    }

    /// An attempt failed; `None` if that was known when it came back.
    pub(super) fn fails(&mut self, attempt: Attempt) -> Option<Setback> {
        if attempt < self.attempt() {
            return None;
        }
        self.setbacks += 1;
        let (pause, now) = (self.backoff.next_delay(), Instant::now());
        self.until = Some(now + pause);
        Some(Setback { pause, is_told: self.reminder.is_due(now) })
    }

    /// An attempt succeeded.
    pub(super) fn succeeds(&mut self) {
        self.backoff.reset();
        self.reminder = Reminder::default();
    }

    /// When it may be tried again; `None` if now.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The pause is over.
    pub(super) fn go_on(&mut self) {
        self.until = None;
    }

    /// Ends with the pause; without one it never does.
    pub(super) async fn passes(until: Option<Instant>) {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_together_are_one_failure() {
        let mut patience = Patience::new();
        for outage in 1..=3 {
            let attempts: Vec<Attempt> = (0..16).map(|_| patience.attempt()).collect();
            let setbacks: Vec<Setback> = attempts.into_iter().filter_map(|one| patience.fails(one)).collect();
            let [setback] = &setbacks[..] else { panic!("{setbacks:?}") };
            assert_eq!(patience.backoff.failures(), outage);
            assert!(setback.pause <= FIRST_PAUSE * 2_u32.pow(outage - 1), "{setback:?}");
            assert_eq!(setback.is_told, outage == 1, "once in half a minute");
            assert!(patience.until().is_some());
            patience.go_on();
        }
    }

    #[test]
    fn what_comes_back_late_prolongs_nothing() {
        let mut patience = Patience::new();
        let late = patience.attempt();
        assert!(patience.fails(patience.attempt()).is_some());
        patience.go_on();
        assert!(patience.fails(patience.attempt()).is_some());
        patience.go_on();
        assert_eq!(patience.fails(late), None);
        assert_eq!((patience.until(), patience.backoff.failures()), (None, 2));
    }

    #[test]
    fn after_a_success_the_next_failure_is_the_first_again() {
        let mut patience = Patience::new();
        for _ in 0..5 {
            patience.fails(patience.attempt());
        }
        patience.succeeds();
        let setback = patience.fails(patience.attempt()).unwrap();
        assert!(setback.pause <= FIRST_PAUSE && setback.is_told, "{setback:?}");
    }
}
