//! What needs a person, and what to do about it.

use super::{MUCH, Report, Source, Stored};
use crate::{
    clickhouse::requests::Request,
    postgres::retention::{Retention, size},
};
use serde::Serialize;

/// A checkpoint that is older than this while much WAL lies ahead is one that does not move.
const STUCK_SECONDS: f64 = 60.0;
/// Of what the server may keep for the slot, one part in so many is left at least: the alert WalhouseSafeWalLow asks for as much.
const LEAST: u64 = 4;
/// A daemon that runs takes up a request within seconds.
const TAKEN_UP_SECONDS: u64 = 60;
/// What brings a slot back, or another one in its place.
const NEW_EPOCH: &str = "walhouse provision --new-epoch --dry-run shows what copying all anew would do";

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `PostgreSQL`, `slot`, `walhouse run`, `ClickHouse`, a table, a queue, a worker.
    pub about: String,
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// The section of docs/runbooks.md that has all of what to do: the name of the alert that tells of it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runbook: Option<&'static str>,
}

pub(super) fn of(report: &Report) -> Vec<Finding> {
    let mut found = Findings::default();
    if let Some(why) = report.source.unreachable() {
        let (what, remedy) = (format!("it can not be reached: {why}"), "bring it back; walhouse goes on by itself");
        found.alert("WalhouseDependencyAway", "PostgreSQL", what, remedy);
    }
    if let Some(why) = report.stored.unreachable() {
        found.clickhouse(why, report.source.known());
    }
    let (source, stored) = (report.source.known(), report.stored.known());
    if let Some(source) = source {
        found.source(source, stored, &report.slot);
    }
    if let Some(stored) = stored {
        found.stored(stored, &report.slot);
    }
    for depth in &report.queues {
        if let Some(why) = depth.messages.unreachable().or(depth.dead_letters.unreachable()) {
            let what = format!("it can not be looked at: {why}");
            found.alert("WalhouseDlqNotCounted", &depth.name, what, "walhouse provision --dry-run");
        }
        if let Some(dead @ 1..) = depth.dead_letters.known() {
            let what = match dead {
                1 => "1 dead letter: an event that was not handled".to_owned(),
                dead => format!("{dead} dead letters: events that were not handled"),
            };
            let remedy = format!("walhouse dlq list --queue {} tells why; docs/recovery.md", depth.queue);
            found.alert("WalhouseDlqNotEmpty", &depth.name, what, remedy);
        }
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, about: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { about: about.into(), what: what.into(), remedy: remedy.into(), runbook: None });
    }

    /// What an alert tells of as well.
    fn alert(&mut self, alert: &'static str, about: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { about: about.into(), what: what.into(), remedy: remedy.into(), runbook: Some(alert) });
    }

    fn clickhouse(&mut self, why: &str, source: Option<&Source>) {
        let mut what = format!("it can not be reached: {}", why.trim_start_matches("ClickHouse can not be reached: "));
        let kept = source.and_then(|source| source.slot.as_ref()).is_some_and(|slot| !slot.is_lost());
        if kept {
            what += ". Changes wait in PostgreSQL's WAL, and nothing is lost";
        }
        let then = if kept { "; walhouse goes on by itself" } else { "" };
        let remedy = format!("bring it back{then}. walhouse check tells what it answers");
        self.alert("WalhouseDependencyAway", "ClickHouse", what, remedy);
    }

    fn source(&mut self, source: &Source, stored: Option<&Stored>, slot: &str) {
        let checkpoint = stored.and_then(|stored| stored.checkpoint.as_ref());
        if source.held_by.is_none() {
            let what = "none is up: nobody holds the slot's lock";
            let remedy = "start it; if it has ended by itself, the end of its log says why";
            self.alert("WalhouseDown", "walhouse run", what, remedy);
        }
        let Some(kept) = &source.slot else {
            if checkpoint.is_some() {
                let what = format!("{slot} is gone, and with it the changes since the checkpoint");
                self.alert("WalhouseSlotLost", "slot", what, NEW_EPOCH);
            }
            return;
        };
        self.slot(kept);
        let Some(checkpoint) = checkpoint else { return };
        if kept.confirmed > checkpoint.position {
            let what = format!("it stands at {}, beyond the checkpoint {}", kept.confirmed, checkpoint.position);
            self.alert("WalhouseDown", "slot", what, "find who has advanced it; docs/operations.md, Halts");
        }
        let ahead = kept.position.since(checkpoint.position);
        let paused = stored.is_some_and(|stored| !stored.paused.is_empty());
        if source.held_by.is_some() && !paused && ahead > MUCH && checkpoint.age_seconds > STUCK_SECONDS {
            let age = checkpoint.age_seconds;
            let what = format!("it has not moved for {age:.0} s, and {} of WAL lie ahead", size(ahead));
            self.alert("WalhouseNoCheckpoint", "checkpoint", what, "the log of walhouse run says what it waits for");
        }
    }

    fn slot(&mut self, kept: &Retention) {
        if kept.is_lost() {
            let why = kept.invalidation.as_deref().unwrap_or("the server has removed WAL that it needs");
            self.alert("WalhouseSlotLost", "slot", format!("it is lost: {why}"), NEW_EPOCH);
        } else if let (Some(safe), Some(limit)) = (kept.safe_bytes, kept.limit_bytes)
            && safe < limit / LEAST
        {
            let remedy = "let walhouse run catch up, or raise max_slot_wal_keep_size";
            self.alert("WalhouseSafeWalLow", "slot", kept.to_string(), remedy);
        }
    }

    fn stored(&mut self, stored: &Stored, slot: &str) {
        if stored.checkpoint.is_none() {
            let what =
                format!("nothing is stored of the slot {slot}: walhouse has not run yet with this configuration");
            return self.add("ClickHouse", what, "walhouse check, then walhouse run");
        }
        for pause in &stored.paused {
            let worker = match pause.subject.label() {
                "pipeline" => String::new(),
                worker => format!(" --worker {worker}"),
            };
            self.add(pause.subject.label(), format!("paused {pause}"), format!("walhouse resume{worker}"));
        }
        for table in &stored.tables {
            let name = &table.table;
            match table.state {
                "stopped" => {
                    let (what, remedy) = (format!("stopped: {}", table.reason), format!("walhouse resync {name}"));
                    self.alert("WalhouseTableStopped", name, what, remedy);
                }
                "paused" => {
                    self.add(name, format!("paused {}", table.reason), format!("walhouse resume --table {name}"));
                }
                _ => {}
            }
        }
        for letters in &stored.dead_letters {
            let rows = letters.letters;
            let what = format!("{rows} {} that it can not hold", if rows == 1 { "row" } else { "rows" });
            let remedy = "walhouse dlq list --rows; docs/operations.md, Dead letters";
            self.alert("WalhouseDeadLetters", &letters.table, what, remedy);
        }
        let late = |request: &&Request| !request.begun && request.age_seconds > TAKEN_UP_SECONDS;
        for request in stored.requests.iter().filter(late) {
            let what = format!("asked for {} s ago, and nobody has taken it up", request.age_seconds);
            self.add(request.action.label(), what, "see that walhouse run is going, with this slot");
        }
    }
}
