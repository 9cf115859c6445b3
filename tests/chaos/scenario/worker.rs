//! Workers die, or live too long.

use std::time::Duration;

use rand::RngExt;

use crate::stage::Stage;
use crate::support::{Daemon, eventually};

const WAIT: Duration = Duration::from_secs(180);
/// A message that its worker does not ask to keep is somebody else's after half a minute.
const LEASE: Duration = Duration::from_secs(30);
/// For both inserts to arrive, if they do.
const SEEN: Duration = Duration::from_secs(5);
const HANDLER: &str = "INSERT+INTO+audit_log";
/// Notes each row of the audit log that is written, whatever a merge makes of it.
const NOTES: [&str; 2] = [
    "CREATE TABLE audited (id UUID) ENGINE = MergeTree ORDER BY id",
    "CREATE MATERIALIZED VIEW audited_view TO audited AS SELECT event_id AS id FROM audit_log",
];
const TWICE: &str = "SELECT count() FROM (SELECT id FROM audited GROUP BY id HAVING count() > 1)";

/// Its message comes back, and has one effect.
pub(super) async fn killed_inside_a_handler(stage: &mut Stage) {
    for _ in 0..stage.rounds(2) {
        let streams = stage.daemon().streams();
        stage.work(10..30).await;
        let before = stage.clickhouse.struck();
        stage.clickhouse.swallow(HANDLER);
        is_at_work(stage, before).await;
        stage.inject("SIGKILL inside a handler");
        stage.daemon().kill9();
        stage.daemon().start();
        stage.mend();
        stage.daemon().wait_streams(streams).await;
    }
}

/// It stands still in the middle of its handler for longer than the message is its own, and what it writes is on its way. Another
/// process has the message in hand too when it goes on, and both write.
pub(super) async fn worker_outlives_its_message(stage: &mut Stage) {
    for note in NOTES {
        stage.db.ch.query(note).await;
    }
    stage.work(20..60).await;
    let before = stage.clickhouse.struck();
    stage.clickhouse.hold(HANDLER);
    is_at_work(stage, before).await;
    stage.daemon().freeze();
    stage.inject("SIGSTOP inside a handler");
    // There is nothing new to handle meanwhile.
    stage.rest().await;
    let before = stage.clickhouse.struck();
    let other = Daemon::spawn(&stage.db, &stage.config());
    other.wait_log("another walhouse holds this slot; waiting for it to end", 1).await;
    tokio::time::sleep(LEASE).await;
    is_at_work(stage, before).await;
    stage.inject("its message is in the hands of another process, and it goes on");
    stage.write();
    // Which of both hears first that it was written is by chance.
    let (first, later) = (stage.rng.random_bool(0.5), stage.rng.random_range(0..400));
    if first {
        stage.mend();
    }
    stage.daemon().resume();
    tokio::time::sleep(Duration::from_millis(later)).await;
    stage.mend();
    stage.load().wait_commits(50).await;
    // Whether both have the same event in hand at that moment is by chance too, and so is whether an insert is given up that
    // has taken so long.
    tokio::time::sleep(SEEN).await;
    let twice = stage.db.ch.query(TWICE).await;
    stage.note(format!("{twice} events were written twice"));
}

/// Waits until a handler writes, which does not come to an end.
async fn is_at_work(stage: &Stage, before: u32) {
    let wire = &stage.clickhouse;
    eventually(WAIT, async || if wire.struck() > before { Ok(()) } else { Err("no handler came by".to_owned()) }).await;
}
