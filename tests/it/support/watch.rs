//! A witness of the order in which positions become true: it looks at both sides all the time, whatever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::clickhouse::Ch;
use super::database::TestDb;
use super::postgres::Pg;

const INTERVAL: Duration = Duration::from_millis(50);

/// Watches the stored checkpoint and the slot's acknowledged position.
///
/// The checkpoint never falls, and what is acknowledged was stored before: the slot is read first, so the checkpoint
/// that is read after it can only be further.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    samples: u32,
    positions: u32,
    checkpoint: u64,
    wrong: Vec<String>,
}

impl Watch {
    /// Begins to look.
    pub(crate) fn start(db: &TestDb) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (pg, ch, slot, ended) =
            (Pg::new(db.postgres.clone(), &db.name), db.ch.clone(), db.name.clone(), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            while !ended.load(Ordering::Relaxed) {
                // While a side is down there is nothing to see, and that is no fault.
                _ = look(&pg, &ch, &slot, &mut seen).await;
                tokio::time::sleep(INTERVAL).await;
            }
            seen
        });
        Self { stop, task }
    }

    /// Ends, and fails the test for whatever was out of order, or when there was too little to see.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.task.await.expect("the witness does not panic");
        println!("{} samples, {} different checkpoints", seen.samples, seen.positions);
        assert!(seen.wrong.is_empty(), "{}", seen.wrong.join("\n"));
        assert!(seen.samples >= 20 && seen.positions >= 5, "{} samples, {}", seen.samples, seen.positions);
    }
}

async fn look(pg: &Pg, ch: &Ch, slot: &str, seen: &mut Seen) -> Result<(), String> {
    let Some(confirmed) = confirmed(pg, slot).await? else { return Ok(()) };
    let Some(checkpoint) = stored(ch, slot).await? else { return Ok(()) };
    seen.samples += 1;
    if checkpoint < seen.checkpoint {
        seen.wrong.push(format!("the checkpoint fell from {} to {checkpoint}", seen.checkpoint));
    }
    if confirmed > checkpoint {
        seen.wrong.push(format!("the slot was acknowledged at {confirmed}, and the checkpoint is {checkpoint}"));
    }
    seen.positions += u32::from(checkpoint > seen.checkpoint);
    seen.checkpoint = seen.checkpoint.max(checkpoint);
    Ok(())
}

/// The slot's acknowledged position, in bytes; `None` when there is no such slot.
pub(crate) async fn confirmed(pg: &Pg, slot: &str) -> Result<Option<u64>, String> {
    let sql = format!("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let value = pg.try_query(&sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    Ok(value.and_then(|text| text.parse().ok()))
}

/// The stored checkpoint; `None` before the first.
pub(crate) async fn stored(ch: &Ch, slot: &str) -> Result<Option<u64>, String> {
    let sql = format!("SELECT lsn FROM _checkpoint WHERE slot = '{slot}' ORDER BY revision DESC, lsn DESC LIMIT 1");
    Ok(ch.try_query(&sql).await?.parse().ok())
}
