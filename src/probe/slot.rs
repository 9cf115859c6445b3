//! The slot, as PostgreSQL shows it.

use super::{Neighbour, PATIENCE, SILENCE};
use crate::{
    config::SourceConfig,
    postgres::sql::{self, SqlError},
    telemetry::names,
};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// A reason is there from PostgreSQL 17 on, and so is not a column of every server's view.
const LOOK: &str = "SELECT s.slot_name IS NOT NULL, s.active, s.wal_status = 'lost', \
        to_jsonb(s) ->> 'invalidation_reason', \
        pg_wal_lsn_diff(w.here, s.restart_lsn)::float8, pg_wal_lsn_diff(w.here, s.confirmed_flush_lsn)::float8, \
        s.safe_wal_size::float8 \
    FROM (SELECT pg_current_wal_lsn() AS here) w LEFT JOIN pg_replication_slots s ON s.slot_name = $1";
const STATES: [&str; 4] = ["active", "inactive", "lost", "missing"];
const REASONS: [&str; 5] = ["wal_removed", "rows_removed", "wal_level_insufficient", "idle_timeout", "unknown"];

/// What a look shows.
#[derive(Debug, PartialEq)]
struct Seen {
    state: &'static str,
    /// Why PostgreSQL has given it up, if it has.
    invalid: Option<&'static str>,
    retained: Option<f64>,
    unconfirmed: Option<f64>,
    /// Infinite where nothing bounds what a slot keeps.
    safe: f64,
}

/// Looks for ever.
pub(super) async fn run(source: &SourceConfig) {
    let (mut neighbour, mut session) = (Neighbour::new("postgresql"), None);
    loop {
        let seen = timeout(PATIENCE, look(source, &mut session)).await;
        let seen = seen.map_err(|_| SILENCE.to_owned()).and_then(|seen| seen.map_err(|error| error.to_string()));
        match neighbour.answered(seen) {
            Some(seen) => seen.show(),
            // Whatever it was, it is asked again in another session.
            None => session = None,
        }
        sleep(INTERVAL).await;
    }
}

async fn look(source: &SourceConfig, session: &mut Option<Client>) -> Result<Seen, SqlError> {
    let client = match session {
        Some(client) => client,
        None => session.insert(sql::connect(source, "walhouse metrics").await?),
    };
    let row = client.query_one(LOOK, &[&source.slot]).await?;
    let is_there: bool = row.try_get(0)?;
    let active = row.try_get::<_, Option<bool>>(1)?.unwrap_or(false);
    let lost = row.try_get::<_, Option<bool>>(2)?.unwrap_or(false);
    let reason: Option<&str> = row.try_get(3)?;
    let (retained, unconfirmed, safe) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
    Ok(Seen::new(is_there.then_some(active), lost, reason, (retained, unconfirmed, safe)))
}

impl Seen {
    /// `active` is `None` without a slot; of the sizes, any that the server does not tell.
    fn new(
        active: Option<bool>,
        lost: bool,
        reason: Option<&str>,
        (retained, unconfirmed, safe): (Option<f64>, Option<f64>, Option<f64>),
    ) -> Self {
        let known = |reason: &str| REASONS.into_iter().find(|known| *known == reason).unwrap_or("unknown");
        // Older servers have one way only to lose a slot.
        let invalid = reason.map(known).or(lost.then_some("wal_removed"));
        let state = match (active, invalid) {
            (None, _) => "missing",
            (_, Some(_)) => "lost",
            (Some(true), None) => "active",
            (Some(false), None) => "inactive",
        };
        let safe = if invalid.is_some() { 0.0 } else { safe.unwrap_or(f64::INFINITY) };
        Self { state, invalid, retained, unconfirmed, safe }
    }

    fn show(&self) {
        let is = |yes: bool| if yes { 1.0 } else { 0.0 };
        for state in STATES {
            metrics::gauge!(names::SLOT_STATE, "state" => state).set(is(state == self.state));
        }
        for reason in REASONS {
            metrics::gauge!(names::SLOT_INVALIDATED, "reason" => reason).set(is(self.invalid == Some(reason)));
        }
        // A slot that is not there keeps nothing.
        metrics::gauge!(names::SLOT_RETAINED).set(self.retained.unwrap_or_default());
        metrics::gauge!(names::SLOT_UNCONFIRMED).set(self.unconfirmed.unwrap_or_default());
        metrics::gauge!(names::SLOT_SAFE).set(self.safe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_active_inactive_lost_or_missing() {
        let sizes = (Some(10.0), Some(5.0), None);
        let seen = |active, lost, reason| Seen::new(active, lost, reason, sizes);
        assert_eq!(seen(Some(true), false, None).state, "active");
        assert_eq!(seen(Some(false), false, None).state, "inactive");
        assert_eq!(seen(None, false, None).state, "missing");
        let lost = seen(Some(false), true, None);
        assert_eq!((lost.state, lost.invalid, lost.safe), ("lost", Some("wal_removed"), 0.0));
        let idle = seen(Some(false), false, Some("idle_timeout"));
        assert_eq!((idle.state, idle.invalid), ("lost", Some("idle_timeout")));
        assert_eq!(seen(Some(false), true, Some("of a later server")).invalid, Some("unknown"));
    }

    #[test]
    fn what_nothing_bounds_is_infinite() {
        let seen = |safe| Seen::new(Some(true), false, None, (Some(10.0), Some(5.0), safe)).safe;
        assert_eq!((seen(None), seen(Some(7.0))), (f64::INFINITY, 7.0));
    }
}
