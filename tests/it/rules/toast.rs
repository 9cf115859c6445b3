//! A toasted value that an update left alone is resolved as of that update: in its batch, in ClickHouse, in PostgreSQL.

use std::time::Duration;

use super::{publish_all, run, session, wait_for_status};
use crate::support::{Daemon, FrozenStream, Past, TestDb, assert_settled_equal, eventually, settled};

/// Creates a table with two columns whose values are toasted from some 2 kB on, and not compressed.
async fn create(db: &TestDb, table: &str) {
    let columns = "id int PRIMARY KEY, n int NOT NULL DEFAULT 0, a text, b text";
    let storage = "ALTER COLUMN a SET STORAGE EXTERNAL, ALTER COLUMN b SET STORAGE EXTERNAL";
    db.pg.execute(&format!("CREATE TABLE {table} ({columns}); ALTER TABLE {table} {storage}")).await;
}

/// A value that is toasted, as an expression: `of` repeated.
fn big(of: &str) -> String {
    format!("repeat('{of}', {})", 3000 / of.len())
}

fn insert(table: &str, id: u32, a: &str, b: &str) -> String {
    format!("INSERT INTO {table} VALUES ({id}, 0, {}, {})", big(a), big(b))
}

/// How many values came from `place` since the daemon's start.
async fn lookups(daemon: &Daemon, place: &str) -> f64 {
    daemon.metric("walhouse_toast_lookups_total", place).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_value_comes_from_the_batch_then_from_clickhouse() {
    let db = TestDb::new("toast").await;
    create(&db, "t").await;
    create(&db, "whole").await;
    db.pg.execute("ALTER TABLE whole REPLICA IDENTITY FULL").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for table in ["t", "whole"] {
        // The first row that lacks a value is what a table's batches begin to keep their keys for.
        db.pg.execute(&insert(table, 9, "a9", "b9")).await;
        db.pg.execute(&format!("UPDATE {table} SET n = 1")).await;
        settled(&db).await;
        let found = lookups(&daemon, "clickhouse").await;
        // One transaction: the values are in ClickHouse no sooner than the updates.
        let (first, second) = (insert(table, 1, "a1", "b1"), insert(table, 2, "a2", "b2"));
        let updates = format!(
            "UPDATE {table} SET n = 1 WHERE id < 3; UPDATE {table} SET a = {} WHERE id = 1;
             UPDATE {table} SET n = 2 WHERE id = 1; UPDATE {table} SET b = NULL WHERE id = 2;
             UPDATE {table} SET n = 3 WHERE id = 2",
            big("a3")
        );
        db.pg.execute(&format!("BEGIN; {first}; {second}; {updates}; COMMIT")).await;
        assert_settled_equal(&db, &[table]).await;
        assert_eq!(lookups(&daemon, "batch").await, 6.0, "resolved inside the batch, all of t");
        assert_eq!(lookups(&daemon, "clickhouse").await, found, "ClickHouse was asked for what the batch had");
        // Each in a batch of its own.
        for sql in [format!("UPDATE {table} SET n = 4"), format!("UPDATE {table} SET a = 'short' WHERE id = 1")] {
            db.pg.execute(&sql).await;
            assert_settled_equal(&db, &[table]).await;
        }
        // An old tuple that is whole needs no lookup.
        let expected = if table == "t" { found + 4.0 } else { found };
        assert_eq!(lookups(&daemon, "clickhouse").await, expected);
    }
    assert_eq!(lookups(&daemon, "postgres").await, 0.0, "PostgreSQL was asked for what ClickHouse had");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_change_carries_an_unchanged_value_along() {
    let db = TestDb::new("toast_keys").await;
    for table in ["t", "u"] {
        create(&db, table).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // A chain of key changes, keys that are used again, a swap.
    let steps = |table: &str| {
        vec![
            insert(table, 1, "first a", "first b"),
            format!("UPDATE {table} SET id = 2 WHERE id = 1"),
            insert(table, 1, "second a", "second b"),
            format!("UPDATE {table} SET id = 3, b = {} WHERE id = 2", big("third b")),
            format!("UPDATE {table} SET id = 2 WHERE id = 1"),
            format!("UPDATE {table} SET id = -id"),
            format!("UPDATE {table} SET id = 5 + id"),
            insert(table, 1, "fourth a", "fourth b"),
            format!("UPDATE {table} SET id = 9 WHERE id = 3"),
            format!("UPDATE {table} SET id = 3 WHERE id = 2"),
            format!("UPDATE {table} SET id = 2 WHERE id = 9"),
            format!("UPDATE {table} SET n = n + 1"),
        ]
    };
    db.pg.execute(&format!("BEGIN; {}; COMMIT", steps("t").join("; "))).await;
    for step in steps("u") {
        db.pg.execute(&step).await;
        settled(&db).await;
    }
    assert_settled_equal(&db, &["t", "u"]).await;
    assert_eq!(lookups(&daemon, "postgres").await, 0.0, "PostgreSQL was asked for what was known");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_update_finds_its_own_row_or_the_one_before_it_never_a_later_one() {
    let db = TestDb::new("toast_replay").await;
    for table in ["t", "lost", "merged"] {
        create(&db, table).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let no_merges = "max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1";
    for table in ["t", "lost"] {
        db.ch.query(&format!("ALTER TABLE {table} MODIFY SETTING {no_merges}")).await;
    }
    let past = Past::begin(&db).await;
    for table in ["t", "lost", "merged"] {
        db.pg.execute(&insert(table, 1, "early a", "early b")).await;
    }
    settled(&db).await;
    let position = db.pg.value("SELECT pg_current_wal_lsn()").await;
    for table in ["t", "lost", "merged"] {
        db.pg.execute(&format!("UPDATE {table} SET id = 2 WHERE id = 1")).await;
        db.pg.execute(&insert(table, 1, "late a", "late b")).await;
        settled(&db).await;
    }
    assert_settled_equal(&db, &["t", "lost", "merged"]).await;
    for round in 0..2 {
        daemon.sigterm(Duration::from_secs(20)).await;
        // As if the key change had not landed, and what came after it had.
        db.ch.query("ALTER TABLE lost DELETE WHERE id = 2 SETTINGS mutations_sync = 2").await;
        db.ch.query("OPTIMIZE TABLE merged FINAL").await;
        past.restore(&db, Some(&position)).await;
        daemon.start();
        assert_settled_equal(&db, &["t", "lost", "merged"]).await;
        assert_eq!(
            lookups(&daemon, "postgres").await,
            0.0,
            "round {round}: PostgreSQL was asked for what ClickHouse had"
        );
    }
    // From the beginning, with everything merged.
    daemon.sigterm(Duration::from_secs(20)).await;
    for table in ["t", "lost", "merged"] {
        db.ch.query(&format!("OPTIMIZE TABLE {table} FINAL")).await;
    }
    past.restore(&db, None).await;
    daemon.start();
    assert_settled_equal(&db, &["t", "lost", "merged"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// Has the copy read the tables as `later` leaves them, while the stream stands before `later`. The daemon is then
/// killed if `kill` says so, the stream goes on, and both sides must be equal.
async fn copied_from_the_future(label: &str, tables: &[&str], earlier: &[String], later: &[String], kill: bool) {
    let db = TestDb::new(label).await;
    for table in tables {
        create(&db, table).await;
    }
    for sql in earlier {
        db.pg.execute(sql).await;
    }
    publish_all(&db).await;
    // Holds up the copy, not the writers.
    let writer = session(&db).await;
    run(&writer, &format!("BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE", tables.join(", "))).await;
    let mut daemon = Daemon::spawn(&db, "");
    for table in tables {
        wait_for_status(&db, table, "copying").await;
    }
    let frozen = FrozenStream::of(&db).await;
    for sql in later {
        db.pg.execute(sql).await;
    }
    run(&writer, "COMMIT").await;
    for table in tables {
        wait_for_status(&db, table, "streaming").await;
    }
    if kill {
        daemon.kill9();
    }
    drop(frozen);
    if kill {
        daemon.start();
    }
    assert_settled_equal(&db, tables).await;
    for table in tables {
        let invented = format!("SELECT count() FROM {table} WHERE a IS NULL AND _is_deleted = 0");
        assert_eq!(db.ch.query(&invented).await, "0", "a row of {table} had a placeholder for some time");
    }
    drop(daemon);
    db.cleanup().await;
}

/// Keys that pass on their row and are used again: the copy finds another row's value under them.
fn reused_keys() -> (Vec<String>, Vec<String>) {
    let earlier = ["direct", "chain"].map(|table| insert(table, 1, "own a", "own b"));
    let later = vec![
        "UPDATE direct SET id = 2 WHERE id = 1".to_owned(),
        insert("direct", 1, "other a", "other b"),
        // The first of these is read from PostgreSQL, where its key has another row by now.
        "UPDATE chain SET id = 5 WHERE id = 1".to_owned(),
        "UPDATE chain SET id = 2 WHERE id = 5".to_owned(),
        insert("chain", 5, "other a", "other b"),
    ];
    (earlier.to_vec(), later)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_change_takes_no_value_that_the_copy_read_from_its_future() {
    let (earlier, later) = reused_keys();
    copied_from_the_future("toast_future", &["direct", "chain"], &earlier, &later, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_copy_read_from_the_future_is_remembered_over_a_crash() {
    let (earlier, later) = reused_keys();
    copied_from_the_future("toast_crash", &["direct", "chain"], &earlier, &later, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_gone_before_its_lookup_is_left_out() {
    let earlier = [insert("t", 1, "a", "b"), insert("t", 2, "a", "b"), insert("t", 3, "a", "b")];
    let later = [
        // Deleted, moved on, deleted and inserted anew.
        "UPDATE t SET id = 10 WHERE id = 1; DELETE FROM t WHERE id = 10".to_owned(),
        "UPDATE t SET id = 20 WHERE id = 2".to_owned(),
        "UPDATE t SET id = 21, n = 1 WHERE id = 20".to_owned(),
        "UPDATE t SET n = 1 WHERE id = 3".to_owned(),
        "DELETE FROM t WHERE id = 3".to_owned(),
        insert("t", 3, "c", "d"),
        "UPDATE t SET n = 2 WHERE id = 3".to_owned(),
    ];
    copied_from_the_future("toast_gone", &["t"], &earlier, &later, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_holds_no_value_to_be_found() {
    let db = TestDb::new("toast_tombstone").await;
    create(&db, "t").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    db.pg.execute(&insert("t", 1, "a", "b")).await;
    db.pg.execute("DELETE FROM t").await;
    db.pg.execute(&insert("t", 1, "c", "d")).await;
    let position = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg.execute("UPDATE t SET n = 1").await;
    db.pg.execute("DELETE FROM t").await;
    settled(&db).await;
    daemon.sigterm(Duration::from_secs(20)).await;
    // What is there when the second row had been left out, because it was gone before its lookup.
    let newer = "_version > (SELECT min(_version) FROM t WHERE _is_deleted)";
    db.ch.query(&format!("ALTER TABLE t DELETE WHERE NOT _is_deleted OR {newer} SETTINGS mutations_sync = 2")).await;
    past.restore(&db, Some(&position)).await;
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(lookups(&daemon, "postgres").await, 1.0);
    assert_eq!(
        db.ch.query("SELECT count() FROM t WHERE NOT _is_deleted").await,
        "0",
        "the tombstone's blank became a row"
    );
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_read_from_postgres_is_remembered_over_a_crash() {
    let db = TestDb::new("toast_read").await;
    for table in ["t", "u"] {
        create(&db, table).await;
    }
    db.pg.execute(&insert("t", 1, "own a", "own b")).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // As if it had never landed, so that the first change is read from PostgreSQL.
    db.ch.query("ALTER TABLE t DELETE WHERE id = 1 SETTINGS mutations_sync = 2").await;
    let frozen = FrozenStream::of(&db).await;
    db.pg.execute("UPDATE t SET n = 1 WHERE id = 1").await;
    let first = db.pg.value("SELECT (pg_current_wal_lsn() - '0/0')::bigint").await;
    // A transaction that keeps the stream busy between the two.
    db.pg.execute("INSERT INTO u SELECT generate_series(1, 200000)").await;
    db.pg.execute("UPDATE t SET id = 2 WHERE id = 1").await;
    db.pg.execute(&insert("t", 1, "other a", "other b")).await;
    drop(frozen);
    let durable = format!("SELECT max(lsn) >= {first} FROM _checkpoint");
    eventually(Duration::from_secs(20), async || match db.ch.try_query(&durable).await?.as_str() {
        "1" => Ok(()),
        _ => Err("the first change is not durable".to_owned()),
    })
    .await;
    daemon.kill9();
    assert_eq!(db.ch.query("SELECT count() FROM t WHERE id = 2").await, "0", "the stream has come too far");
    daemon.start();
    assert_settled_equal(&db, &["t", "u"]).await;
    drop(daemon);
    db.cleanup().await;
}
