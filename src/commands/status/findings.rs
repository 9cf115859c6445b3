//! What needs a person, and what to do about it.

use super::{Report, Source, Stored};
use crate::{
    clickhouse::requests::Request,
    postgres::retention::{Retention, size},
};
use serde::Serialize;

/// A checkpoint that is older than this while much WAL lies ahead is one that does not move.
const STUCK_SECONDS: f64 = 60.0;
const MUCH: u64 = 16 << 20;
/// Of what the server may keep for the slot, so much is left at least.
const LEAST: u64 = 10;
/// A daemon that runs takes up a request within seconds.
const TAKEN_UP_SECONDS: u64 = 60;

/// Something that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: `PostgreSQL`, `slot`, `walhouse run`, `ClickHouse`, a table, a queue, a worker.
    pub about: String,
    /// What is the matter.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

pub(super) fn of(report: &Report) -> Vec<Finding> {
    let mut found = Findings::default();
    if let Some(why) = report.source.unreachable() {
        found.add("PostgreSQL", format!("it can not be reached: {why}"), "walhouse check");
    }
    if let Some(why) = report.stored.unreachable() {
        found.add("ClickHouse", format!("it can not be reached: {why}"), "walhouse check");
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
            found.add(&depth.name, format!("it can not be looked at: {why}"), "walhouse provision --dry-run");
        }
        if let Some(dead @ 1..) = depth.dead_letters.known() {
            let what = format!("{dead} dead {}", if *dead == 1 { "letter" } else { "letters" });
            found.add(&depth.name, what, format!("walhouse dlq list --queue {}; docs/recovery.md", depth.queue));
        }
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, about: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { about: about.into(), what: what.into(), remedy: remedy.into() });
    }

    fn source(&mut self, source: &Source, stored: Option<&Stored>, slot: &str) {
        let checkpoint = stored.and_then(|stored| stored.checkpoint.as_ref());
        if source.held_by.is_none() {
            let what = "none is up: nobody holds the slot's lock";
            self.add("walhouse run", what, "start it; if it has ended by itself, the end of its log says why");
        }
        let Some(kept) = &source.slot else {
            if checkpoint.is_some() {
                let what = format!("{slot} is gone, and with it the changes since the checkpoint");
                self.add("slot", what, "walhouse provision --new-epoch --dry-run; docs/operations.md");
            }
            return;
        };
        self.slot(kept);
        let Some(checkpoint) = checkpoint else { return };
        if kept.confirmed > checkpoint.position {
            let what = format!("it stands at {}, beyond the checkpoint {}", kept.confirmed, checkpoint.position);
            self.add("slot", what, "find who has advanced it; docs/operations.md, Halts");
        }
        let ahead = kept.position.since(checkpoint.position);
        let paused = stored.is_some_and(|stored| !stored.paused.is_empty());
        if source.held_by.is_some() && !paused && ahead > MUCH && checkpoint.age_seconds > STUCK_SECONDS {
            let age = checkpoint.age_seconds;
            let what = format!("it has not moved for {age:.0} s, and {} of WAL lie ahead", size(ahead));
            self.add("checkpoint", what, "the log of walhouse run says what it waits for");
        }
    }

    fn slot(&mut self, kept: &Retention) {
        if kept.is_lost() {
            let why = kept.invalidation.as_deref().unwrap_or("the server has removed WAL that it needs");
            self.add(
                "slot",
                format!("it is lost: {why}"),
                "walhouse provision --new-epoch --dry-run; docs/operations.md",
            );
        } else if let (Some(safe), Some(limit)) = (kept.safe_bytes, kept.limit_bytes)
            && safe < limit / LEAST
        {
            self.add("slot", kept.to_string(), "let walhouse run catch up, or raise max_slot_wal_keep_size");
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
                "stopped" => self.add(name, format!("stopped: {}", table.reason), format!("walhouse resync {name}")),
                "paused" => {
                    self.add(name, format!("paused {}", table.reason), format!("walhouse resume --table {name}"));
                }
                _ => {}
            }
        }
        for letters in &stored.dead_letters {
            let rows = letters.letters;
            let what = format!("{rows} {} that it can not hold", if rows == 1 { "row" } else { "rows" });
            self.add(&letters.table, what, "walhouse dlq list --rows; docs/operations.md, Dead letters");
        }
        let late = |request: &&Request| !request.begun && request.age_seconds > TAKEN_UP_SECONDS;
        for request in stored.requests.iter().filter(late) {
            let what = format!("asked for {} s ago, and nobody has taken it up", request.age_seconds);
            self.add(request.action.label(), what, "see that walhouse run is going, with this slot");
        }
    }
}
