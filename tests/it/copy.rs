//! The initial copy: chunks that survive a kill, changes of every kind beside it, tables that come later, odd names.

mod tables;
mod together;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::Client;

use crate::support::{Daemon, TestDb, assert_equal, chunks, eventually, hold_copy, seeded_rng};

/// One worker, so that chunks are copied one after the other.
const ONE_WORKER: &str = "[source.snapshot]\nworkers = 1\n";
/// Rows of `wide`, each in a heap block of its own: 156 MiB of heap, four chunks, little data.
const ROWS: i64 = 20_000;

/// A heap of several chunks, some of whose rows are toasted.
async fn wide(db: &TestDb) {
    db.pg
        .execute(&format!(
            "CREATE TABLE wide (id int8 PRIMARY KEY, v int8, pad text, note text) WITH (fillfactor = 10);
            ALTER TABLE wide ALTER pad SET STORAGE PLAIN, ALTER note SET STORAGE EXTERNAL;
            INSERT INTO wide SELECT i, 0, repeat(md5(i::text), 20), CASE WHEN i % 97 = 0 THEN repeat(md5(i::text), 100) END
            FROM generate_series(1, {ROWS}) AS i"
        ))
        .await;
}

/// Keeps the copy between two chunks, once some are done, for as long as the transaction is open.
async fn hold(db: &TestDb, done: usize) -> Client {
    let holder = hold_copy(db, "wide", done).await;
    let waiting =
        "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'wide'::regclass AND mode = 'AccessShareLock'";
    eventually(Duration::from_secs(30), async || match db.pg.query(waiting).await.is_empty() {
        false => Ok(()),
        true => Err(format!("no chunk waits; {:?}", chunks(db).await)),
    })
    .await;
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_goes_on_with_the_chunks_that_are_missing() {
    let db = TestDb::new("copy_kill").await;
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, ONE_WORKER);
    let holder = hold(&db, 2).await;
    daemon.kill9();
    let before = chunks(&db).await;
    assert!((2..4).contains(&before.len()), "{before:?}");
    holder.batch_execute("COMMIT").await.expect("the lock is given back");

    daemon.start();
    daemon.wait_ready().await;
    let after = chunks(&db).await;
    assert_eq!(after.len(), 4, "{after:?}");
    for chunk in &before {
        assert!(after.contains(chunk), "{chunk} was copied again: {after:?}");
    }
    let done: i64 = before.iter().filter_map(|chunk| chunk.split('\t').nth(2)?.parse::<i64>().ok()).sum();
    let copied = daemon.metric("walhouse_copy_rows_total", "table=\"public.wide\"").await;
    assert_eq!(copied as i64, ROWS - done);
    assert_eq!(daemon.metric("walhouse_copy_progress_ratio", "table=\"public.wide\"").await, 1.0);
    assert_equal(&db, "wide").await;
    drop(daemon);
    db.cleanup().await;
}

/// Updates, key changes, deletes and inserts of random rows.
fn random_change(random: &mut StdRng) -> String {
    let id = random.random_range(1..=ROWS);
    match random.random_range(0..5) {
        0 => format!("UPDATE wide SET v = v + 1 WHERE id BETWEEN {id} AND {id} + 20"),
        1 => format!("UPDATE wide SET note = repeat(md5(v::text), 90) WHERE id BETWEEN {id} AND {id} + 5"),
        2 => format!(
            "UPDATE wide SET id = id + 1000000 * (1 + (SELECT max(id) FROM wide) / 1000000) WHERE id BETWEEN {id} AND {id} + 9"
        ),
        3 => format!("DELETE FROM wide WHERE id BETWEEN {id} AND {id} + 7"),
        _ => format!(
            "INSERT INTO wide VALUES ({id}, -1, 'new', repeat('n', 2500)) ON CONFLICT (id) DO UPDATE SET v = -2"
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_beside_the_copy_win_over_it() {
    let db = TestDb::new("copy_changes").await;
    let mut random = seeded_rng();
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, ONE_WORKER);
    // In chunks that are being copied, until all of them are.
    let copied = Arc::new(AtomicBool::new(false));
    let changing = tokio::spawn({
        let (copied, mut random) = (copied.clone(), StdRng::seed_from_u64(random.random()));
        let writer = db.pg.connect().await.expect("a session");
        async move {
            while !copied.load(Ordering::Relaxed) {
                writer.batch_execute(&random_change(&mut random)).await.expect("a change");
            }
        }
    });
    // In chunks that were, and in chunks that are not yet.
    let holder = hold(&db, 1).await;
    let held = Instant::now();
    let (first, last) = (ROWS / 10, ROWS / 10 * 9);
    for change in [
        format!("UPDATE wide SET v = 7 WHERE id IN ({first}, {last}, 97, {ROWS} / 97 * 97)"),
        format!("DELETE FROM wide WHERE id IN ({first} + 1, {last} + 1)"),
        format!("UPDATE wide SET id = -id WHERE id IN ({first} + 2, {last} + 2, 97 * 3, ({ROWS} / 97 - 2) * 97)"),
        "DELETE FROM wide WHERE id = 500; INSERT INTO wide VALUES (500, 1, 'back')".to_owned(),
    ] {
        holder.batch_execute(&change).await.expect("a change");
    }
    // Progress is told every five seconds, when a chunk is done.
    while held.elapsed() < Duration::from_millis(5500) {
        let change = random_change(&mut random);
        holder.batch_execute(&change).await.expect("a change");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let progress = daemon.metric("walhouse_copy_progress_ratio", "table=\"public.wide\"").await;
    assert!(progress > 0.0 && progress < 1.0, "{progress}");
    assert_eq!(daemon.metric("walhouse_copy_pending_tables", "").await, 1.0);
    let ready = daemon.get("/readyz").await.expect("an answer");
    assert!(ready.status == 503 && ready.body.contains("copying 1 table\n"), "{}", ready.body);
    holder.batch_execute("COMMIT").await.expect("a commit");
    daemon.wait_ready().await;
    copied.store(true, Ordering::Relaxed);
    changing.await.expect("the changes");
    assert_equal(&db, "wide").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains(" copying ")).expect("a line of progress");
    for part in ["table=\"public.wide\"", "rows=", "percent=", "rows_per_second=", "seconds_left="] {
        assert!(line.contains(part), "{line}");
    }
    assert!(log.contains("table copied"), "{log}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_during_the_copy_ends_it() {
    let db = TestDb::new("copy_truncate").await;
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, ONE_WORKER);
    let holder = hold(&db, 1).await;
    holder
        .batch_execute(
            "INSERT INTO wide VALUES (-1, 1, 'gone'); UPDATE wide SET v = 9 WHERE id < 1000; TRUNCATE wide;
            INSERT INTO wide SELECT i, 5, 'new' FROM generate_series(1, 10) AS i; COMMIT",
        )
        .await
        .expect("a transaction");
    daemon.wait_ready().await;
    assert_equal(&db, "wide").await;
    assert_eq!(db.ch.query("SELECT count() FROM wide FINAL").await, "10");
    // A restart finds the copy ended.
    daemon.kill9();
    daemon.start();
    daemon.wait_ready().await;
    assert_eq!(daemon.metric("walhouse_copy_rows_total", "").await, 0.0);
    assert_equal(&db, "wide").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heap_that_is_rewritten_during_the_copy_is_copied_again() {
    let db = TestDb::new("copy_rewrite").await;
    wide(&db).await;
    let mut daemon = Daemon::spawn(&db, ONE_WORKER);
    let holder = hold(&db, 1).await;
    // In the order of another index and without the free space, so that rows move to the blocks that are done.
    holder
        .batch_execute(
            "ALTER TABLE wide SET (fillfactor = 100); CREATE INDEX other ON wide ((-id)); CLUSTER wide USING other; COMMIT",
        )
        .await
        .expect("a rewrite");
    daemon.wait_ready().await;
    assert_equal(&db, "wide").await;
    assert!(daemon.log().contains("the heap was rewritten; copying it again"), "{}", daemon.log());
    drop(daemon);
    db.cleanup().await;
}
