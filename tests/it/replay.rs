//! `walhouse replay`: what was damaged in ClickHouse is put right from the WAL that the slot has kept.

mod catchup;
mod toast;

use std::fs;
use std::time::{Duration, Instant};

use crate::queue::{insert, prefix, with_outbox};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Exit, Postgres, PostgresOptions, Sqs, TestDb, assert_equal, confirmed,
    difference, eventually, signal, stored, walhouse,
};

const STOP: Duration = Duration::from_secs(20);
/// More than any test writes.
const WINDOW: &str = "[source]\nreplay_window = \"4GiB\"\n";

async fn position(db: &TestDb) -> String {
    db.pg.value("SELECT pg_current_wal_lsn()").await
}

async fn replay(daemon: &Daemon, from: &str, more: &[&str]) -> Exit {
    walhouse(daemon.config(), &[&["replay", "--from-lsn", from], more].concat()).await
}

fn assert_done(exit: &Exit) {
    assert!(exit.code == Some(0) && exit.stderr.contains("delivered again, and durable"), "{exit:?}");
}

/// The checkpoint is past what was committed before this call.
async fn passed(db: &TestDb) {
    let position: u64 = db.pg.value("SELECT pg_current_wal_lsn() - '0/0'").await.parse().expect("a number");
    eventually(Duration::from_secs(60), async || match stored(&db.ch, &db.name).await? {
        Some(stored) if stored >= position => Ok(()),
        other => Err(format!("{other:?}, not {position}")),
    })
    .await;
}

async fn mutate(db: &TestDb, table: &str, what: &str) {
    db.ch.query(&format!("ALTER TABLE {table} {what} SETTINGS mutations_sync = 2")).await;
}

/// Rows with values that updates leave alone, keys that change, deletes: all since the position that is returned.
async fn history(db: &TestDb, rows: usize) -> String {
    let from = position(db).await;
    db.pg
        .execute(&format!(
            "INSERT INTO t SELECT i, 'name ' || i, repeat(md5(i::text), 120) FROM generate_series(1, {rows}) i;
            UPDATE t SET name = name || ' again' WHERE id % 2 = 0;
            UPDATE t SET id = id + 1000000 WHERE id % 5 = 0;
            UPDATE t SET name = 'moved' WHERE id > 1000000 AND id % 10 = 0;
            DELETE FROM t WHERE id % 7 = 0;
            INSERT INTO log SELECT i, 'entry ' || i FROM generate_series(1, {rows}) i;
            DELETE FROM log WHERE id % 3 = 0"
        ))
        .await;
    from
}

async fn tables(db: &TestDb) {
    db.pg
        .execute(
            "CREATE TABLE t (id int8 PRIMARY KEY, name text, big text);
            ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
            CREATE TABLE log (id int8, note text); ALTER TABLE log REPLICA IDENTITY FULL",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_deleted_or_changed_in_clickhouse_are_put_right() {
    let db = TestDb::new("replay").await;
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, WINDOW);
    daemon.wait_ready().await;
    let from = history(&db, 2000).await;
    assert_equal(&db, "t").await;
    assert_equal(&db, "log").await;
    passed(&db).await;
    let before = stored(&db.ch, &db.name).await.expect("a checkpoint");
    mutate(&db, "t", "DELETE WHERE id % 3 = 0").await;
    // A key that is gone at the source, and its tombstone with it.
    mutate(&db, "t", "DELETE WHERE _is_deleted = 1").await;
    mutate(&db, "t", "UPDATE name = 'damaged', big = 'damaged' WHERE id % 11 = 1").await;
    mutate(&db, "log", "DELETE WHERE id % 2 = 0").await;
    assert!(difference(&db, "t").await.is_some() && difference(&db, "log").await.is_some(), "nothing was damaged");

    assert_done(&replay(&daemon, &from, &[]).await);
    assert_equal(&db, "t").await;
    assert_equal(&db, "log").await;
    let exit = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    // Delivery was rewound, and not the checkpoint: `_checkpoint` keeps the highest revision only, so its history is not there.
    assert!(stored(&db.ch, &db.name).await.expect("a checkpoint") >= before);
    // And the stream goes on behind it.
    db.pg.execute("INSERT INTO t VALUES (5000, 'later', 'x'); UPDATE t SET name = 'last' WHERE id = 1").await;
    assert_equal(&db, "t").await;
    daemon.wait_ready().await;
    // Once more is no harm.
    assert_done(&replay(&daemon, &from, &[]).await);
    assert_equal(&db, "t").await;
    assert_equal(&db, "log").await;
    drop(daemon);
    db.cleanup().await;
}

/// Rows that are damaged, a replay that is asked for, and no window any more: nothing is kept but what is delivered again.
async fn damaged(db: &TestDb) -> (Daemon, String) {
    tables(db).await;
    let mut daemon = Daemon::spawn(db, WINDOW);
    daemon.wait_ready().await;
    let from = history(db, 2000).await;
    assert_equal(db, "t").await;
    passed(db).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let config = fs::read_to_string(daemon.config()).expect("the configuration can be read");
    fs::write(daemon.config(), config.replace("4GiB", "0")).expect("the configuration can be written");
    mutate(db, "t", "DELETE WHERE id % 3 = 0").await;
    mutate(db, "t", "UPDATE name = 'damaged' WHERE id % 11 = 1").await;
    let exit = replay(&daemon, &from, &["--no-wait"]).await;
    assert_eq!(exit.code, Some(0), "{exit:?}");
    (daemon, from)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_a_crash() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), "replay_crash").await;
    let (mut daemon, from) = damaged(&db).await;
    let streams = daemon.streams();
    daemon.start();
    // It is taken up, and can not be done: the server hears at once what it may forget, and each second again.
    daemon.wait_log("delivering again from", 1).await;
    daemon.wait_streams(streams).await;
    clickhouse.freeze();
    tokio::time::sleep(Duration::from_secs(2)).await;
    daemon.kill9();
    clickhouse.resume();
    let kept =
        format!("SELECT confirmed_flush_lsn <= '{from}' FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    assert_eq!(db.pg.value(&kept).await, "t");
    daemon.start();
    daemon.wait_log("delivered again from", 1).await;
    assert_settled_by(&db).await;
    // And then it is let go.
    eventually(Duration::from_secs(30), async || match db.pg.value(&kept).await.as_str() {
        "f" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_a_stop() {
    let db = TestDb::new("replay_stop").await;
    let (mut daemon, _from) = damaged(&db).await;
    let streams = daemon.streams();
    daemon.start();
    daemon.wait_log("delivering again from", 1).await;
    daemon.wait_streams(streams).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    daemon.start();
    daemon.wait_log("delivered again from", 1).await;
    assert_settled_by(&db).await;
    drop(daemon);
    db.cleanup().await;
}

async fn assert_settled_by(db: &TestDb) {
    passed(db).await;
    assert_equal(db, "t").await;
    assert_equal(db, "log").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_again_is_not_late_and_the_replay_has_measures_of_its_own() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), "replay_measures").await;
    let (mut daemon, _from) = damaged(&db).await;
    let streams = daemon.streams();
    daemon.start();
    // Taken up, and not done: that it is has to be stored first.
    daemon.wait_log("delivering again from", 1).await;
    daemon.wait_streams(streams).await;
    clickhouse.freeze();
    eventually(Duration::from_secs(60), async || match daemon.metric("walhouse_rows_received_total", "").await {
        0.0 => Err("no row has come".to_owned()),
        _ => Ok(()),
    })
    .await;
    assert!(daemon.metric("walhouse_replay_start_timestamp_seconds", "").await > 0.0);
    assert!(daemon.metric("walhouse_replay_remaining_bytes", "").await > 0.0);
    let ready = daemon.get("/readyz").await.expect("walhouse answers");
    assert!(ready.status == 503 && ready.body.contains("a replay has"), "{}", ready.body);
    // It is measured four times a second, and these rows are older than that.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(daemon.metric("walhouse_lag_seconds", "").await, 0.0);
    }
    clickhouse.resume();
    eventually(Duration::from_secs(240), async || {
        let start = daemon.metric("walhouse_replay_start_timestamp_seconds", "").await;
        if start == 0.0 { Ok(()) } else { Err("it is not done".to_owned()) }
    })
    .await;
    assert_eq!(daemon.metric("walhouse_replay_remaining_bytes", "").await, 0.0);
    assert_eq!(daemon.metric("walhouse_commit_to_durable_seconds_count", "").await, 0.0);
    // What is new counts.
    db.pg.execute("INSERT INTO t VALUES (5000, 'later', 'x')").await;
    assert_settled_by(&db).await;
    assert!(daemon.metric("walhouse_commit_to_durable_seconds_count", "").await >= 1.0);
    daemon.wait_ready().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_shape_and_a_truncate_in_between_are_no_harm() {
    let db = TestDb::new("replay_shape").await;
    tables(&db).await;
    let mut daemon = Daemon::spawn(&db, WINDOW);
    daemon.wait_ready().await;
    let from = history(&db, 200).await;
    assert_equal(&db, "t").await;
    db.pg.execute("TRUNCATE log; INSERT INTO log VALUES (1, 'after')").await;
    db.pg.execute("ALTER TABLE t ADD COLUMN more int DEFAULT 7; ALTER TABLE t RENAME COLUMN name TO called").await;
    db.pg.execute("INSERT INTO t VALUES (9001, 'new', 'b', 8); UPDATE t SET called = 'now' WHERE id = 1").await;
    assert_equal(&db, "t").await;
    assert_equal(&db, "log").await;
    passed(&db).await;
    mutate(&db, "t", "DELETE WHERE id IN (1, 9001)").await;
    let exit = replay(&daemon, &from, &[]).await;
    assert_done(&exit);
    // What is older than its shape is left out, and that is said.
    assert!(exit.stderr.contains("public.t: only what has committed since"), "{}", exit.stderr);
    assert_equal(&db, "t").await;
    assert_equal(&db, "log").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_can_not_be_replayed_from_is_refused_with_the_range() {
    let db = TestDb::new("replay_refused").await;
    tables(&db).await;
    let early = position(&db).await;
    // Without a window.
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    history(&db, 50).await;
    passed(&db).await;
    let future = db.pg.value("SELECT pg_current_wal_lsn() + 1073741824").await;
    for (from, says) in [(early.as_str(), "lies before the slot"), (future.as_str(), "lies in the future")] {
        let exit = replay(&daemon, from, &[]).await;
        assert!(exit.code == Some(1) && exit.stderr.contains(says), "{exit:?}");
        assert!(exit.stderr.contains("what can be delivered again lies between"), "{exit:?}");
    }
    let exit = replay(&daemon, "17", &[]).await;
    assert_eq!(exit.code, Some(2), "{exit:?}");
    // A request that reaches the daemon is looked at there too: the slot may have moved in between.
    let id = uuid::Uuid::from_u128(rand::random());
    db.ch
        .query(&format!(
            "INSERT INTO _requests (slot, id, action, state, message, revision)
            VALUES ('{}', '{id}', 'replay', 'asked', '{{\"from\":\"{early}\",\"events\":false}}', 1)",
            db.name
        ))
        .await;
    daemon.wait_log("a replay is refused", 1).await;
    let answer = db.ch.query(&format!("SELECT state, message FROM _requests FINAL WHERE id = '{id}'")).await;
    assert!(answer.starts_with("refused\t") && answer.contains("lies before the slot"), "{answer}");
    daemon.wait_ready().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_the_range_are_sent_again_only_if_that_is_asked_for_and_with_their_ids() {
    let (db, sqs) = (with_outbox("replay_events").await, Sqs::shared());
    let queue = format!("{}audit-log-queue", prefix(&db));
    let mut daemon = Daemon::spawn(&db, &format!("{WINDOW}{}", Sqs::config(sqs.port(), &prefix(&db))));
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    let from = position(&db).await;
    for number in 0..5 {
        db.pg.execute(&insert("a", number)).await;
    }
    let ids = |events: Vec<crate::support::Received>| {
        let mut ids: Vec<String> = events.iter().map(|event| event.body["metadata"]["eventId"].to_string()).collect();
        ids.sort();
        ids
    };
    let sent = ids(sqs.take(&queue, 5).await);
    passed(&db).await;
    assert_done(&replay(&daemon, &from, &[]).await);
    db.pg.execute(&insert("b", 1)).await;
    // The one that is new, and no other.
    assert_eq!(ids(sqs.take(&queue, 1).await).len(), 1);
    passed(&db).await;
    assert_done(&replay(&daemon, &from, &["--events"]).await);
    let again = ids(sqs.take(&queue, 6).await);
    assert!(sent.iter().all(|id| again.contains(id)), "{sent:?} {again:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_stays_behind_by_the_window_and_a_server_that_shuts_down_does_not_wait_for_it() {
    let postgres = Postgres::private(PostgresOptions::default());
    let db = TestDb::on(postgres.clone(), ClickHouse::shared(), "replay_window").await;
    tables(&db).await;
    let daemon = Daemon::spawn(&db, "[source]\nreplay_window = \"2MiB\"\n");
    eventually(Duration::from_secs(60), async || difference(&db, "t").await.map_or(Ok(()), Err)).await;
    for _ in 0..3 {
        history(&db, 2000).await;
        db.pg.execute("DELETE FROM t; DELETE FROM log").await;
    }
    passed(&db).await;
    eventually(Duration::from_secs(30), async || {
        let (told, kept) = (confirmed(&db.pg, &db.name).await?, stored(&db.ch, &db.name).await?);
        match (told, kept) {
            // What is stored may move on between the two looks.
            (Some(told), Some(kept)) if (2 << 20..3 << 20).contains(&(kept - told)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // A fast shutdown waits for walsenders until all is acknowledged.
    let pid = postgres.directory().join("postmaster.pid");
    let pid = if pid.exists() { pid } else { postgres.directory().join("data/postmaster.pid") };
    assert!(pid.exists(), "{}", pid.display());
    let begun = Instant::now();
    signal("INT", &[postgres.pid()]);
    while pid.exists() {
        assert!(begun.elapsed() < Duration::from_secs(40), "the server waits for the slot");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(daemon);
}
