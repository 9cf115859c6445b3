//! What is looked at all the time, whatever is killed: what is acknowledged was stored before, what is stored never falls, and
//! what is stored is held by the sink.
//!
//! For the last of these a session of its own commits a row into each of two tables, again and again, and notes a position
//! past each commit. Whenever the checkpoint has reached a noted position, both rows have to be in ClickHouse.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Ch, Pg, TestDb, confirmed};

/// For walhouse to be back after the last fault, on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(180);
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks until it is asked what it saw.
pub(crate) struct Witness {
    ticking: Arc<AtomicBool>,
    looking: Arc<AtomicBool>,
    ticks: JoinHandle<()>,
    looks: JoinHandle<Seen>,
    /// Looks and checkpoints so far.
    so_far: watch::Receiver<(u32, u32)>,
}

/// What was seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) samples: u32,
    pub(crate) checkpoints: u32,
    /// Rows that a stored checkpoint covers, and that were looked for.
    pub(crate) covered: u64,
    pub(crate) wrong: Vec<String>,
    checkpoint: u64,
}

/// For each tick, from the first on, a position that is past its commit.
type Positions = Arc<Mutex<Vec<u64>>>;

impl Witness {
    /// Begins; the copies are done.
    pub(crate) fn start(db: &TestDb) -> Self {
        let (ticking, looking) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let positions = Positions::default();
        let pg = Pg::new(db.postgres.clone(), &db.name);
        let ticks = tokio::spawn(tick(pg.clone(), Arc::clone(&positions), Arc::clone(&ticking)));
        let (ch, slot, goes_on) = (db.ch.clone(), db.name.clone(), Arc::clone(&looking));
        let (count, so_far) = watch::channel((0, 0));
        let looks = tokio::spawn(async move {
            let mut seen = Seen::default();
            while goes_on.load(Ordering::Relaxed) {
                // While a side is down there is nothing to see, and that is no fault.
                _ = look(&pg, &ch, &slot, &positions, &mut seen).await;
                count.send_replace((seen.samples, seen.checkpoints));
                tokio::time::sleep(INTERVAL).await;
            }
            seen
        });
        Self { ticking, looking, ticks, looks, so_far }
    }

    /// Waits until there was enough to see: so many looks, and so many checkpoints.
    pub(crate) async fn see(&mut self, looks: u32, checkpoints: u32) {
        let enough = self.so_far.wait_for(|seen| seen.0 >= looks && seen.1 >= checkpoints);
        let seen = tokio::time::timeout(PATIENCE, enough).await;
        assert!(seen.is_ok_and(|seen| seen.is_ok()), "there was too little to see: {:?}", *self.so_far.borrow());
    }

    /// Its own session ends; it goes on looking.
    pub(crate) async fn be_quiet(&mut self) {
        self.ticking.store(false, Ordering::Relaxed);
        (&mut self.ticks).await.expect("the ticks do not panic");
    }

    pub(crate) async fn finish(self) -> Seen {
        self.looking.store(false, Ordering::Relaxed);
        self.looks.await.expect("the witness does not panic")
    }
}

/// Commits rows 1, 2, 3, … without a gap, also where it did not hear whether one was committed.
async fn tick(pg: Pg, positions: Positions, goes_on: Arc<AtomicBool>) {
    while goes_on.load(Ordering::Relaxed) {
        _ = next_tick(&pg, &positions).await;
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn next_tick(pg: &Pg, positions: &Positions) -> Result<(), String> {
    let number = async |sql: &str| -> Result<u64, String> {
        let value = pg.try_query(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        value.and_then(|text| text.parse().ok()).ok_or_else(|| format!("no number: {sql}"))
    };
    let noted = positions.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
    let there = number("SELECT coalesce(max(n), 0) FROM tick").await?;
    if there == noted {
        let next = noted + 1;
        pg.try_execute(&format!("INSERT INTO tick VALUES ({next}); INSERT INTO tock VALUES ({next}, {next} % 2 = 1)"))
            .await?;
    }
    let position = number("SELECT pg_current_wal_insert_lsn() - '0/0'").await?;
    positions.lock().unwrap_or_else(PoisonError::into_inner).push(position);
    Ok(())
}

/// The slot is read first, then the checkpoint, then the rows: what is read later can only be further.
async fn look(pg: &Pg, ch: &Ch, slot: &str, positions: &Positions, seen: &mut Seen) -> Result<(), String> {
    let acknowledged = confirmed(pg, slot).await?;
    // One after the other, as they stand there.
    let sql = format!(
        "SELECT (SELECT lsn FROM _checkpoint WHERE slot = '{slot}' ORDER BY revision DESC, lsn DESC LIMIT 1),
            (SELECT arraySort(groupUniqArray(n)) FROM tick), (SELECT arraySort(groupUniqArray(n)) FROM tock)"
    );
    let found = ch.try_query(&sql).await?;
    // A server whose disk is full may answer with nothing, which is no answer.
    let [checkpoint, ticks, tocks] = found.split('\t').collect::<Vec<_>>()[..] else { return Ok(()) };
    let Ok(checkpoint) = checkpoint.parse() else { return Ok(()) };
    seen.samples += 1;
    if checkpoint < seen.checkpoint {
        seen.wrong.push(format!("the checkpoint fell from {} to {checkpoint}", seen.checkpoint));
    }
    if let Some(acknowledged) = acknowledged.filter(|&position| position > checkpoint) {
        seen.wrong.push(format!("the slot was acknowledged at {acknowledged}, and the checkpoint is {checkpoint}"));
    }
    seen.checkpoints += u32::from(checkpoint > seen.checkpoint);
    seen.checkpoint = seen.checkpoint.max(checkpoint);
    let covered = {
        let positions = positions.lock().unwrap_or_else(PoisonError::into_inner);
        positions.partition_point(|&position| position <= checkpoint) as u64
    };
    for (table, there) in [("tick", ticks), ("tock", tocks)] {
        let there: Vec<u64> = there.trim_matches(['[', ']']).split(',').filter_map(|n| n.parse().ok()).collect();
        let lacks: Vec<u64> = (1..=covered).filter(|n| there.binary_search(n).is_err()).collect();
        if !lacks.is_empty() {
            seen.wrong
                .push(format!("the checkpoint {checkpoint} covers {covered} rows of {table}, which lacks {lacks:?}"));
        }
    }
    seen.covered = seen.covered.max(2 * covered);
    Ok(())
}
