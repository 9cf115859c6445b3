//! The report for people.

use super::{Copying, Part, Report, Source, Stored, TableReport};
use crate::{clickhouse::requests::Request, postgres::retention::size};
use std::fmt::{self, Formatter};

const UNKNOWN: &str = "can not be reached";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.source {
            Part::Known(source) => source_lines(f, source, &self.slot)?,
            Part::Unknown { unreachable } => writeln!(f, "PostgreSQL   {UNKNOWN}: {unreachable}")?,
        }
        match &self.stored {
            Part::Known(stored) => {
                let end = self.source.known().and_then(|source| source.slot.as_ref()).map(|slot| slot.position);
                stored_lines(f, stored, end)?;
            }
            Part::Unknown { unreachable } => writeln!(f, "ClickHouse   {UNKNOWN}: {unreachable}")?,
        }
        self.queues(f)?;
        if let Part::Known(stored) = &self.stored {
            tables(f, &stored.tables)?;
            requests(f, &stored.requests)?;
        }
        if let Some(left_out) = self.source.known().map(|source| &source.left_out).filter(|all| !all.is_empty()) {
            writeln!(f, "\nNot replicated")?;
            for table in left_out {
                writeln!(f, "  {}: {}", table.table, table.reason)?;
            }
        }
        if self.findings.is_empty() {
            return f.write_str("\nAll is well.");
        }
        write!(f, "\nTo do")?;
        for finding in &self.findings {
            write!(f, "\n✗ {}: {}\n  → {}", finding.about, finding.what, finding.remedy)?;
        }
        Ok(())
    }
}

fn source_lines(f: &mut Formatter<'_>, source: &Source, name: &str) -> fmt::Result {
    let up = source.held_by.as_ref().map_or("down".to_owned(), |who| format!("up: {who}"));
    writeln!(f, "walhouse     {up}")?;
    let Some(slot) = &source.slot else { return writeln!(f, "slot         {name} does not exist") };
    let state = match (slot.is_lost(), slot.active_pid) {
        (true, _) => "lost".to_owned(),
        (false, Some(pid)) => format!("active (pid {pid})"),
        (false, None) => "not active".to_owned(),
    };
    let status = &slot.wal_status;
    writeln!(
        f,
        "slot         {name}, {state}, {status}; acknowledged {}, {} behind",
        slot.confirmed,
        size(slot.lag_bytes)
    )?;
    writeln!(f, "WAL          {slot}; its end is {}", slot.position)
}

fn stored_lines(f: &mut Formatter<'_>, stored: &Stored, end: Option<crate::event::Lsn>) -> fmt::Result {
    let Some(checkpoint) = &stored.checkpoint else {
        return writeln!(f, "checkpoint   none: walhouse has not run yet with this configuration");
    };
    let (position, age, epoch) = (checkpoint.position, checkpoint.age_seconds, checkpoint.epoch);
    write!(f, "checkpoint   {position}, stored {} ago, epoch {epoch}", seconds(age))?;
    if let Some(end) = end {
        write!(f, ", {} before the end of the WAL", size(end.since(position)))?;
    }
    writeln!(f)?;
    if checkpoint.queue_position > crate::event::Lsn::ZERO {
        writeln!(f, "events       sent up to {}", checkpoint.queue_position)?;
    }
    for pause in &stored.paused {
        writeln!(f, "paused       {} {pause}", pause.subject)?;
    }
    Ok(())
}

fn tables(f: &mut Formatter<'_>, tables: &[TableReport]) -> fmt::Result {
    let streaming = tables.iter().filter(|table| table.state == "streaming").count();
    writeln!(f, "tables       {} known, {streaming} streaming", tables.len())?;
    let notable = |table: &&TableReport| table.state != "streaming" || table.copying.is_some();
    for table in tables.iter().filter(notable) {
        write!(f, "  {}: {}", table.table, table.state)?;
        if let Some(copying) = &table.copying {
            write!(f, ", {}", copy(copying))?;
        }
        let reason = if table.reason.is_empty() { String::new() } else { format!(": {}", table.reason) };
        writeln!(f, "{reason}")?;
    }
    Ok(())
}

fn copy(copying: &Copying) -> String {
    let share = copying.done.map(|done| format!(" ({:.0} %)", done * 100.0)).unwrap_or_default();
    let beside = if copying.beside { " beside the live one" } else { "" };
    format!("{} rows copied{share}{beside}", copying.rows)
}

fn requests(f: &mut Formatter<'_>, requests: &[Request]) -> fmt::Result {
    for request in requests {
        let Request { action, schema, name, begun, age_seconds, .. } = request;
        let table = if name.is_empty() { String::new() } else { format!(" {schema}.{name}") };
        let state = if *begun { "begun" } else { "asked for" };
        writeln!(f, "request      {}{table}: {state}, {} ago", action.label(), seconds(*age_seconds as f64))?;
        if *action == crate::clickhouse::requests::Action::Replay {
            writeln!(f, "             {}", request.message)?;
        }
    }
    Ok(())
}

impl Report {
    fn queues(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let number = |part: &Part<u64>| part.known().map_or("?".to_owned(), u64::to_string);
        for depth in &self.queues {
            let (messages, dead) = (number(&depth.messages), number(&depth.dead_letters));
            writeln!(f, "queue        {}: {messages} messages, {dead} dead letters", depth.name)?;
        }
        let Some(workers) = &self.workers else { return Ok(()) };
        let one = |worker: &super::queues::WorkerSetting| match worker.enabled {
            true => format!("{} ({} at once)", worker.worker, worker.concurrency),
            false => format!("{} (off)", worker.worker),
        };
        let all: Vec<String> = workers.workers.iter().map(one).collect();
        writeln!(f, "workers      {}", all.join(", "))
    }
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    humantime::format_duration(std::time::Duration::from_secs(seconds as u64)).to_string()
}
