//! The main slot, while its copies are read and nobody holds it.

use std::time::{Duration, Instant};

use walhouse::event::Lsn;
use walhouse::postgres::source::Reader;

use super::alone;
use super::readers::{Drive, position, slot, source};
use crate::support::{ClickHouse, Postgres, PostgresOptions, TestDb, confirmed, eventually};

/// A backlog of a slot, and nothing of it read.
async fn backlog(db: &TestDb) -> (String, Lsn, Lsn) {
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); CREATE PUBLICATION walhouse FOR TABLE item").await;
    let (main, start) = slot(db, "main").await;
    for id in 0..40 {
        let rows = format!("INSERT INTO item SELECT {id}000 + i, repeat('v', 400) FROM generate_series(1, 400) i");
        db.pg.execute(&rows).await;
        // Notes down what runs: decoding can begin here.
        db.pg.execute("CHECKPOINT").await;
    }
    let end = position(&db.pg, "pg_current_wal_flush_lsn()").await;
    (main, start, end)
}

/// A server that takes a slot for idle soon, from now on.
async fn impatient(label: &str) -> (TestDb, String, Lsn, Lsn) {
    let postgres = Postgres::private(PostgresOptions { version: "18", ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), label).await;
    let (main, start, end) = backlog(&db).await;
    db.pg.query(&format!("SELECT pg_replication_slot_advance('{main}', '{start}')")).await;
    for statement in ["ALTER SYSTEM SET idle_replication_slot_timeout = '5s'", "SELECT pg_reload_conf()"] {
        db.pg.execute(statement).await;
    }
    (db, main, start, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_does_not_become_idle_while_its_copies_are_read() {
    let (db, main, start, end) = impatient("keeper_idle").await;
    let state =
        format!("SELECT coalesce(invalidation_reason, 'valid') FROM pg_replication_slots WHERE slot_name = '{main}'");
    let mut drive = Drive::new(source(&db, &main, 1), start, end);
    drive.room = 1 << 10;
    let stop = drive.stop.clone();
    let began = Instant::now();
    let mut looked = began;
    // Whoever takes the rows is slow, and the checkpoint stands still.
    let read = drive
        .run(async |_| {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if looked.elapsed() > Duration::from_secs(1) {
                looked = Instant::now();
                db.pg.execute("CHECKPOINT").await;
                assert_eq!(db.pg.value(&state).await, "valid", "after {:?}", began.elapsed());
            }
            if began.elapsed() > Duration::from_secs(11) {
                stop.cancel();
            }
        })
        .await;
    assert_eq!(read.readers, [Reader::CatchUp]);
    assert!(began.elapsed() > Duration::from_secs(11), "there was not enough to read");
    assert_eq!(confirmed(&db.pg, &main).await, Ok(Some(start.0)));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_lock_does_not_move_the_slot() {
    let (db, main, start, end) = impatient("keeper_lock").await;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'test lock'";
    let mut drive = Drive::new(source(&db, &main, 1), start, end);
    drive.room = 1 << 10;
    let (stored, stop) = (drive.stored.clone(), drive.stop.clone());
    let read = drive
        .run(async |count| {
            if count != 5 {
                return;
            }
            eventually(Duration::from_secs(10), async || {
                if db.pg.value(ended).await == "0" { Ok(()) } else { Err("it is there".to_owned()) }
            })
            .await;
            stored.send_replace(end);
            // Longer than the slot stays without a use.
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert_eq!(confirmed(&db.pg, &main).await, Ok(Some(start.0)));
            stop.cancel();
        })
        .await;
    assert_eq!(read.readers, [Reader::CatchUp]);
    assert_eq!(confirmed(&db.pg, &main).await, Ok(Some(start.0)));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_being_decoded_ends_with_its_reader() {
    let db = alone("keeper_end").await;
    let (main, start, end) = backlog(&db).await;
    // Decoding waits for this from the first row on.
    let locked = db.pg.connect().await.expect("PostgreSQL takes connections");
    locked.batch_execute("BEGIN; LOCK TABLE pg_publication_rel").await.expect("a catalog can be locked");
    let drive = Drive::new(source(&db, &main, 2), start, end);
    let stop = drive.stop.clone();
    let decoding = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'walhouse catch-up' AND wait_event_type = 'Lock'";
    let stopping = async {
        // A window without a commit has nothing to wait for.
        eventually(Duration::from_secs(20), async || match db.pg.value(decoding).await.as_str() {
            "0" => Err("nothing is decoded".to_owned()),
            _ => Ok(()),
        })
        .await;
        stop.cancel();
    };
    let (read, ()) = tokio::join!(drive.run(async |_| {}), stopping);
    assert_eq!(read.readers, [Reader::CatchUp]);
    let slots = format!("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots WHERE database = '{}'", db.name);
    assert_eq!(db.pg.value(&slots).await, main);
    locked.batch_execute("ROLLBACK").await.expect("it can be unlocked");
    db.cleanup().await;
}
