//! When to catch up, and in which windows.

use super::{GivenUp, session::out_of_proportion, window::Bounds};
use crate::{config::SourceConfig, event::Lsn, postgres::sql::SqlError};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// All the windows that are decoded at once may be so many times as long as one is by itself, and each of them half that.
const GROWTH: u64 = 16;
/// When less than this share of a window is left, it is left to the stream.
const REST: u64 = 4;
/// The first and the longest pause after catching up did not come about, or failed.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// The bounds of windows, one after the other.
///
/// A session passes over all the WAL, the others' windows too, and decodes again what lies between where decoding has to
/// begin and its window. So the fewer windows the better: as many as there are sessions, unless those would be too long.
#[derive(Debug)]
pub(super) struct Plan {
    window: u64,
    share: u64,
    longest: u64,
    next: Lsn,
    repeated: u64,
}

impl Plan {
    /// What lies between `from` and `flushed`, for so many sessions, in windows that are not much shorter than `window`;
    /// with `grow` they may be longer.
    pub(super) fn new(window: u64, grow: bool, sessions: usize, from: Lsn, flushed: Lsn) -> Self {
        let sessions = (sessions as u64).max(1);
        let times = if grow { (GROWTH / sessions).clamp(1, GROWTH / 2) } else { 1 };
        let longest = window.saturating_mul(times);
        Self { window, share: flushed.since(from) / sessions, longest, next: from, repeated: 0 }
    }

    /// The next window; `None` if what lies before `flushed`, the end of the WAL that is durable at the source, is not
    /// worth one.
    pub(super) fn next(&mut self, flushed: Lsn) -> Option<Bounds> {
        let (left, rest) = (flushed.since(self.next), self.window / REST);
        if left < rest.max(1) {
            return None;
        }
        // What is decoded again shall not be more than what is new.
        let length = self.repeated.max(self.share).clamp(self.window, self.longest);
        let upto = if left <= length + rest { flushed } else { Lsn(self.next.0 + length) };
        let bounds = Bounds { from: self.next, upto };
        self.next = upto;
        Some(bounds)
    }

    /// How far back the decoding of a window had to begin, in bytes.
    pub(super) fn repeated(&mut self, bytes: u64) {
        self.repeated = bytes;
    }
}

/// Whether it is time.
#[derive(Debug)]
pub(crate) struct Gate {
    sessions: usize,
    lag: u64,
    not_before: Instant,
    past: Lsn,
    failures: u32,
    /// Whether a window was too much, so that none is to be longer than configured.
    careful: bool,
    said: Option<String>,
}

impl Gate {
    pub(crate) fn new(source: &SourceConfig) -> Self {
        let (sessions, lag) = (source.sessions(), source.catch_up_lag.0);
        Self { sessions, lag, not_before: Instant::now(), past: Lsn::ZERO, failures: 0, careful: false, said: None }
    }

    /// Whether what lies between `position` and `flushed` is to be read by the catch-up reader.
    pub(crate) fn is_open(&self, position: Lsn, flushed: Lsn) -> bool {
        self.sessions > 0
            && flushed.since(position) > self.lag
            && position >= self.past
            && Instant::now() >= self.not_before
    }

    /// It came to the head of the WAL.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.said = None;
    }

    /// Whether windows may be longer than configured.
    pub(crate) fn may_grow(&self) -> bool {
        !self.careful
    }

    /// It was not possible, or did not go on.
    pub(crate) fn close(&mut self, why: &GivenUp) {
        metrics::counter!(crate::telemetry::names::CATCH_UP_GIVEN_UP, "reason" => why.reason()).increment(1);
        let said = why.to_string();
        if self.said.as_ref() == Some(&said) {
            tracing::debug!(reason = said, "streaming, not catching up");
        } else {
            tracing::warn!(reason = said, "streaming, not catching up");
            self.said = Some(said);
        }
        self.careful |= matches!(why, GivenUp::TooMuch { .. } | GivenUp::Stalled);
        if let GivenUp::TooMuch { past, .. } = why {
            self.past = *past;
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = Instant::now() + pause;
    }
}

/// Whether the server lets the slot be copied; with the number of slots that are free, and how much its copies would have
/// to decode again.
pub(super) async fn look(client: &Client, source: &SourceConfig, from: Lsn) -> Result<(usize, u64), GivenUp> {
    // The column failover came with PostgreSQL 17.
    let row = client
        .query_opt(
            "SELECT current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
                    restart_lsn::text, coalesce((to_jsonb(s) ->> 'failover')::bool, false) \
             FROM pg_replication_slots s WHERE slot_name = $1",
            &[&source.slot],
        )
        .await
        .map_err(SqlError::from)?;
    let Some(row) = row else { return Err(GivenUp::Failed("the slot is gone".to_owned())) };
    let free: i64 = row.try_get(0).map_err(SqlError::from)?;
    let restart: Option<&str> = row.try_get(1).map_err(SqlError::from)?;
    if row.try_get(2).map_err(SqlError::from)? {
        return Err(GivenUp::Failover);
    }
    let free = usize::try_from(free).unwrap_or(0);
    if free == 0 {
        return Err(GivenUp::NoSlot);
    }
    let repeated = restart.and_then(|lsn| lsn.parse().ok()).map_or(0, |restart: Lsn| from.since(restart));
    if repeated > out_of_proportion(source.catch_up_window.0) {
        return Err(GivenUp::OpenTransaction { bytes: repeated });
    }
    Ok((free, repeated))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(from: u64, repeated: u64) -> Plan {
        let mut plan = Plan::new(100, true, 2, Lsn(from), Lsn(from));
        plan.repeated(repeated);
        plan
    }

    fn bounds(from: u64, upto: u64) -> Option<Bounds> {
        Some(Bounds { from: Lsn(from), upto: Lsn(upto) })
    }

    #[test]
    fn windows_lie_side_by_side_up_to_the_flushed_end() {
        let mut plan = plan(1000, 0);
        assert_eq!(plan.next(Lsn(1300)), bounds(1000, 1100));
        assert_eq!(plan.next(Lsn(1225)), bounds(1100, 1225));
        assert_eq!(plan.next(Lsn(1249)), None);
        assert_eq!(plan.next(Lsn(1250)), bounds(1225, 1250));
        assert_eq!(plan.next(Lsn(1000)), None);
    }

    #[test]
    fn a_window_is_as_long_as_what_is_decoded_again_for_it_within_bounds() {
        let mut plan = plan(0, 300);
        assert_eq!(plan.next(Lsn(10_000)), bounds(0, 300));
        plan.repeated(1_000_000);
        assert_eq!(plan.next(Lsn(10_000)), bounds(300, 1100));
        plan.repeated(0);
        assert_eq!(plan.next(Lsn(10_000)), bounds(1100, 1200));
    }

    #[test]
    fn each_session_gets_one_window_if_those_are_not_too_long() {
        let bounds_of = |grow, sessions, flushed| {
            let mut plan = Plan::new(100, grow, sessions, Lsn(0), Lsn(flushed));
            std::iter::from_fn(|| plan.next(Lsn(flushed))).map(|bounds| bounds.upto.0).collect::<Vec<_>>()
        };
        assert_eq!(bounds_of(true, 2, 700), [350, 700]);
        assert_eq!(bounds_of(true, 4, 700), [175, 350, 525, 700]);
        assert_eq!(bounds_of(true, 2, 2000), [800, 1600, 2000], "half of what may be decoded at once");
        assert_eq!(bounds_of(true, 4, 2000), [400, 800, 1200, 1600, 2000], "a quarter");
        assert_eq!(bounds_of(true, 1, 2000), [800, 1600, 2000], "half, and not more");
        assert_eq!(bounds_of(true, 16, 300), [100, 200, 300]);
        assert_eq!(bounds_of(false, 2, 300), [100, 200, 300], "as configured");
    }

    #[test]
    fn it_is_time_when_far_behind_and_not_again_at_once() {
        let mut source = SourceConfig::new("postgres://w@localhost/shop".parse().expect("a URL"));
        source.catch_up_lag = crate::config::ByteSize(100);
        source.catch_up_sessions = Some(0);
        assert!(!Gate::new(&source).is_open(Lsn(0), Lsn(1000)), "turned off");
        source.catch_up_sessions = Some(2);
        let mut gate = Gate::new(&source);
        assert!(!gate.is_open(Lsn(50), Lsn(150)));
        assert!(gate.is_open(Lsn(50), Lsn(151)) && gate.may_grow());
        gate.close(&GivenUp::TooMuch { past: Lsn(500), why: String::new() });
        assert!(!gate.is_open(Lsn(499), Lsn(1000)), "the window's end was not streamed yet");
        assert!(gate.is_open(Lsn(500), Lsn(1000)));
        assert!(!gate.may_grow());
        gate.close(&GivenUp::Stalled);
        assert!(!gate.is_open(Lsn(500), Lsn(1000)), "a pause");
    }
}
