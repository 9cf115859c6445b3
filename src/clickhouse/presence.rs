//! Whether ClickHouse is there, as everybody who asks it something finds out.
//!
//! While it is away each of them tries again by itself, several times in the first second. The log needs that once: one warning
//! when it goes away, with what to do, one now and then while that goes on, and one line when it is back. The status page
//! shows it too. Nothing is decided by it.
//!
//! Statements are many at once, so one may end long after what it tells has changed. What was begun before ClickHouse went away
//! is no word of its return, and what was begun before it came back none of another absence. And a statement that hangs while
//! others are answered hangs by itself: whoever sent it tells of that.

use super::client;
use crate::retry::Reminder;
use clickhouse::error::Error;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// How often the log says that it is still away.
const REMIND: Duration = Duration::from_secs(300);

/// The one that this process writes to.
static CLICKHOUSE: Presence = Presence::new();

/// What is known of it.
#[derive(Debug)]
pub struct Presence {
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    away: Option<(Absence, Instant)>,
    reminder: Reminder,
    /// When it came back last.
    back: Option<Instant>,
    /// When it answered last.
    heard: Option<Instant>,
}

/// It does not answer.
#[derive(Clone, Debug)]
pub struct Absence {
    /// Since when.
    pub since: SystemTime,
    /// What was met last, without anything of a row.
    pub error: String,
}

/// What the ClickHouse of this process is known by.
pub fn presence() -> &'static Presence {
    &CLICKHOUSE
}

impl Presence {
    const fn new() -> Self {
        Self { record: Mutex::new(Record { away: None, reminder: Reminder::every(REMIND), back: None, heard: None }) }
    }

    /// Since when it is away, if it is.
    pub fn absence(&self) -> Option<Absence> {
        self.record().away.as_ref().map(|(absence, _)| absence.clone())
    }

    /// Whether it is away.
    pub fn is_away(&self) -> bool {
        self.record().away.is_some()
    }

    /// Takes note of how a statement ended that was begun then. Returns whether it did so because ClickHouse is away, of
    /// which the log is told here.
    pub fn note<T>(&self, begun: Instant, doing: &str, outcome: &Result<T, Error>) -> bool {
        let now = Instant::now();
        match outcome {
            Err(Error::TimedOut) if self.hangs_alone(begun, now) => false,
            Err(error) if client::is_away(error) => {
                self.missed(begun, now, doing, &client::describe(error));
                true
            }
            // An error of its own is an answer.
            _ => {
                self.answered(begun, now);
                false
            }
        }
    }

    /// Takes note of an error that somebody has met just now. Returns whether it means that ClickHouse is away.
    pub fn failed(&self, doing: &str, error: &Error) -> bool {
        let now = Instant::now();
        let is_away = client::is_away(error);
        if is_away {
            self.missed(now, now, doing, &client::describe(error));
        }
        is_away
    }

    /// Whether others were answered in the second half of the time that a statement has hung: ClickHouse itself can hardly have
    /// gone so late.
    fn hangs_alone(&self, begun: Instant, now: Instant) -> bool {
        let heard = self.record().heard;
        heard.is_some_and(|heard| now.duration_since(heard) < now.duration_since(begun) / 2)
    }

    /// Returns whether the log was told.
    fn missed(&self, begun: Instant, now: Instant, doing: &str, error: &str) -> bool {
        let mut record = self.record();
        if record.away.is_none() && record.back.is_some_and(|back| begun < back) {
            return false;
        }
        let (absence, _) =
            record.away.get_or_insert_with(|| (Absence { since: SystemTime::now(), error: String::new() }, now));
        error.clone_into(&mut absence.error);
        let is_due = record.reminder.is_due(now);
        drop(record);
        if is_due {
            tracing::warn!(
                doing,
                error,
                "ClickHouse is away; walhouse goes on when it is back. Start it, or correct clickhouse.url: walhouse check \
                 says more"
            );
        }
        is_due
    }

    /// Returns whether the log was told.
    fn answered(&self, begun: Instant, now: Instant) -> bool {
        let mut record = self.record();
        record.heard = Some(now);
        if record.away.as_ref().is_none_or(|(_, since)| begun < *since) {
            return false;
        }
        let since = record.away.take().map_or(now, |(_, since)| since);
        record.back = Some(now);
        record.reminder = Reminder::every(REMIND);
        drop(record);
        tracing::info!(away = ?now.duration_since(since), "ClickHouse is back");
        true
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_once_then_rarely_and_its_end_once() {
        let (presence, start) = (Presence::new(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!presence.answered(at(0), at(0)), "it was never away");
        let told = |seconds: &u64| presence.missed(at(*seconds), at(*seconds), "look", "refused");
        assert_eq!((1..700).filter(told).collect::<Vec<_>>(), [1, 301, 601]);
        assert_eq!(presence.absence().map(|absence| absence.error), Some("refused".to_owned()));
        assert!(presence.answered(at(700), at(701)) && !presence.is_away());
        assert!(!presence.answered(at(702), at(702)), "once");
        assert!(told(&710), "another absence is told at once");
    }

    #[test]
    fn a_statement_that_hangs_while_others_are_answered_is_no_absence() {
        let (presence, start) = (Presence::new(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!presence.hangs_alone(at(0), at(60)), "nobody was answered yet");
        presence.answered(at(49), at(50));
        assert!(presence.hangs_alone(at(0), at(60)));
        assert!(!presence.hangs_alone(at(45), at(60)), "the last answer was early in its time");
        assert!(!presence.hangs_alone(at(51), at(111)), "none since it began");
    }

    #[test]
    fn what_was_begun_before_a_change_says_nothing_of_what_came_after_it() {
        let (presence, start) = (Presence::new(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(presence.missed(at(1), at(2), "look", "refused"));
        assert!(!presence.answered(at(1), at(3)) && presence.is_away(), "an answer that was on its way");
        assert!(presence.answered(at(3), at(4)));
        assert!(!presence.missed(at(2), at(60), "insert", "silence") && !presence.is_away(), "one that hung meanwhile");
        assert!(presence.missed(at(61), at(62), "look", "refused"));
    }
}
