//! Memory is bounded by configuration, whatever the size of a transaction, a row or a backlog.

use std::fs;
use std::time::Duration;

use crate::queue::{prefix, with_outbox};
use crate::support::{Daemon, Sqs, TestDb, assert_equal, eventually};

const MIB: u64 = 1 << 20;
/// The default budget of 32 MiB, the program itself, and what an allocator keeps.
const BOUND: u64 = 96 * MIB;

/// The most that the process has ever had resident.
fn peak(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("walhouse is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has a VmHWM");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmHWM is in kB");
    kilobytes * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_backlog_is_drained_within_the_budget() {
    let db = TestDb::new("memory_backlog").await;
    db.pg
        .execute(
            "CREATE TABLE narrow (id int8 PRIMARY KEY, v int8); CREATE TABLE wide (id int PRIMARY KEY, body text);
            ALTER TABLE wide ALTER body SET STORAGE EXTERNAL",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    daemon.kill9();
    db.pg
        .execute(
            "INSERT INTO narrow SELECT i, i * 3 FROM generate_series(1, 1000000) i;
            INSERT INTO wide SELECT i, repeat(md5(i::text), 32768) FROM generate_series(1, 200) i",
        )
        .await;
    daemon.start();
    eventually(Duration::from_secs(150), async || {
        let arrived = db.ch.query("SELECT (SELECT count() FROM narrow FINAL), (SELECT count() FROM wide FINAL)").await;
        if arrived == "1000000\t200" { Ok(()) } else { Err(arrived) }
    })
    .await;
    let sums = "SELECT sum(v), sum(id * v % 1000003) FROM narrow";
    let expected = db.pg.query("SELECT sum(v)::text || E'\\t' || sum(id * v % 1000003)::text FROM narrow").await;
    assert_eq!(Some(db.ch.query(&format!("{sums} FINAL")).await), expected[0][0]);
    let digests = db.pg.value("SELECT md5(string_agg(md5(body), '' ORDER BY id)) FROM wide").await;
    let theirs = "SELECT lower(hex(MD5(arrayStringConcat(groupArray(d))))) FROM (SELECT lower(hex(MD5(body))) AS d FROM wide FINAL ORDER BY id)";
    assert_eq!(db.ch.query(theirs).await, digests);
    let peak = peak(&daemon);
    println!("peak: {} MiB", peak / MIB);
    assert!(peak < BOUND, "{} MiB", peak / MIB);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_that_is_larger_than_a_batch_passes_alone() {
    let db = TestDb::new("memory_row").await;
    db.pg
        .execute(
            "CREATE TABLE item (id int PRIMARY KEY, v text, body text); ALTER TABLE item ALTER body SET STORAGE EXTERNAL;
            INSERT INTO item SELECT 0, 'copied', repeat('0123456789', 3000000)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "INSERT INTO item VALUES (1, 'small'); INSERT INTO item SELECT 2, 'streamed', repeat('abcdefghij', 3000000);
            INSERT INTO item VALUES (3, 'small'); UPDATE item SET v = 'updated' WHERE id = 0; UPDATE item SET id = 9 WHERE id = 2",
        )
        .await;
    assert_equal(&db, "item").await;
    let peak = peak(&daemon);
    println!("peak: {} MiB", peak / MIB);
    // The row as it came, as a column and as what is sent, each in a buffer that had to grow.
    assert!(peak < 350 * MIB, "{} MiB", peak / MIB);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_larger_than_all_budgets_passes_alone() {
    const BYTES: u64 = 40_000_000;
    let (db, sqs) = (with_outbox("memory_event").await, Sqs::shared());
    let mut daemon = Daemon::spawn(&db, &Sqs::handled(sqs.port(), &prefix(&db)));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let before = peak(&daemon);
    db.pg
        .execute(&format!(
            "INSERT INTO outbox_event (event_type, payload) SELECT 'SecurityEventOccurred', jsonb_build_object('eventType', 'login',
            'actingUserId', 'u', 'outcome', 'success', 'details', jsonb_build_object('x', repeat('0123456789', {})))",
            BYTES / 10
        ))
        .await;
    let written = db.pg.value("SELECT md5((payload->'details')::text) FROM outbox_event").await;
    eventually(Duration::from_secs(150), async || {
        match db.ch.try_query("SELECT lower(hex(MD5(details))) FROM audit_log FINAL").await? {
            there if there == written => Ok(()),
            there => Err(there),
        }
    })
    .await;
    let peak = peak(&daemon);
    println!("peak: {} MiB, and {} before", peak / MIB, before / MIB);
    // The row as it came, its payload, its envelope; or the payload from the store, its row and what is sent of that.
    assert!(peak < before + 4 * BYTES, "{} MiB", peak / MIB);
    drop(daemon);
    db.cleanup().await;
}
