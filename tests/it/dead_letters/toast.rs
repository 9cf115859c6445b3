//! What a dead letter leaves behind in ClickHouse is old: no update may be completed from it.

use std::time::Duration;

use super::{ANCIENT, assert_none_stopped, lost};
use crate::support::{Daemon, Past, TestDb, assert_settled_equal, settled};

/// A value that is toasted, as an expression.
fn big(of: &str) -> String {
    format!("repeat('{of}', {})", 3000 / of.len())
}

async fn create(db: &TestDb, table: &str) {
    db.pg
        .execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int, d date, a text, b text);
             ALTER TABLE {table} ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL"
        ))
        .await;
}

/// A row that is home; a change of it that is lost; one without the value that was in the lost one. By the row's and
/// by another key.
fn history(table: &str) -> [String; 3] {
    let (a, b, c) = (big("first"), big("other"), big("lost "));
    [
        format!("INSERT INTO {table} SELECT i, 0, NULL, {a}, {b} FROM generate_series(1, 4) i"),
        format!(
            "UPDATE {table} SET d = {ANCIENT}, a = {c} WHERE id = 1; UPDATE {table} SET d = 'infinity', a = {c} WHERE id = 2;
             UPDATE {table} SET id = 30, d = {ANCIENT}, a = {c} WHERE id = 3;
             INSERT INTO {table} VALUES (5, 0, {ANCIENT}, {a}, {b})"
        ),
        format!(
            "UPDATE {table} SET d = NULL WHERE id = 1; UPDATE {table} SET id = 20, d = NULL WHERE id = 2;
             UPDATE {table} SET d = NULL, n = 1 WHERE id = 30; UPDATE {table} SET d = NULL WHERE id = 5;
             UPDATE {table} SET n = 2 WHERE id = 4"
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_value_is_not_taken_from_before_a_letter() {
    let db = TestDb::new("letters_toast").await;
    for table in ["one", "each", "restarted"] {
        create(&db, table).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    // In one batch that keeps its keys: the first update is what it begins to keep them for.
    db.pg.execute(&format!("INSERT INTO one VALUES (9, 0, NULL, {}, NULL)", big("nine"))).await;
    db.pg.execute("UPDATE one SET n = 1").await;
    settled(&db).await;
    db.pg.execute(&format!("BEGIN; {}; COMMIT", history("one").join("; "))).await;
    for step in history("each") {
        db.pg.execute(&step).await;
        settled(&db).await;
    }
    let [first, second, third] = history("restarted");
    for step in [first, second] {
        db.pg.execute(&step).await;
        settled(&db).await;
    }
    daemon.kill9();
    daemon.start();
    db.pg.execute(&third).await;
    assert_settled_equal(&db, &["one", "each", "restarted"]).await;
    for table in ["one", "each", "restarted"] {
        assert_eq!(lost(&db, table).await.len(), 4, "{table}");
    }
    // As if what came after the letters had never landed.
    for _ in 0..2 {
        daemon.sigterm(Duration::from_secs(20)).await;
        for table in ["one", "each", "restarted"] {
            let last = format!("ALTER TABLE {table} DELETE WHERE id = 5 OR a LIKE 'lost%'");
            db.ch.query(&format!("{last} SETTINGS mutations_sync = 2")).await;
        }
        past.restore(&db, None).await;
        daemon.start();
        assert_settled_equal(&db, &["one", "each", "restarted"]).await;
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_keys_are_still_looked_up_in_clickhouse() {
    let db = TestDb::new("letters_others").await;
    create(&db, "t").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for step in history("t") {
        db.pg.execute(&step).await;
        settled(&db).await;
    }
    assert_settled_equal(&db, &["t"]).await;
    let (postgres, clickhouse) = (lookups(&daemon, "postgres").await, lookups(&daemon, "clickhouse").await);
    assert_eq!((postgres, clickhouse), (4.0, 1.0), "only keys with a letter are read from PostgreSQL");
    // And those keys too, once a row of theirs is home.
    db.pg.execute("UPDATE t SET n = 7").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(lookups(&daemon, "postgres").await, postgres);
    drop(daemon);
    db.cleanup().await;
}

async fn lookups(daemon: &Daemon, place: &str) -> f64 {
    daemon.metric("walhouse_toast_lookups_total", place).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_lost_when_it_is_completed_leaves_the_others_alone() {
    let db = TestDb::new("letters_complete").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text, d date); CREATE TABLE whole (id int PRIMARY KEY, a text, d date);
             ALTER TABLE t ALTER a SET STORAGE EXTERNAL; ALTER TABLE whole ALTER a SET STORAGE EXTERNAL;
             ALTER TABLE whole REPLICA IDENTITY FULL",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for table in ["t", "whole"] {
        db.pg.execute(&format!("INSERT INTO {table} SELECT i, {}, NULL FROM generate_series(1, 4) i", big("a"))).await;
        settled(&db).await;
        // The marker comes before the value that can not be held.
        db.pg
            .execute(&format!(
                "BEGIN; UPDATE {table} SET d = '2020-01-01' WHERE id = 1; UPDATE {table} SET d = {ANCIENT} WHERE id = 2;
                 UPDATE {table} SET id = 30, d = {ANCIENT} WHERE id = 3; UPDATE {table} SET d = '2020-01-02' WHERE id = 4; COMMIT"
            ))
            .await;
        settled(&db).await;
        assert_none_stopped(&db).await;
        let rows =
            format!("SELECT groupArray((id, toString(d), length(a))) FROM (SELECT * FROM {table} FINAL ORDER BY id)");
        let expected = "[(1,'2020-01-01',3000),(2,NULL,3000),(4,'2020-01-02',3000)]";
        assert_eq!(db.ch.query(&rows).await, expected, "{table}");
        let letters = super::letters(&db, table).await;
        assert_eq!(letters.len(), 2, "{letters:?}");
        assert_eq!(
            (letters[0].operation.as_str(), letters[0].envelope["new"]["d"].as_str()),
            ("update", Some("0044-03-15 BC"))
        );
        assert_eq!(letters[0].envelope["unchanged"], serde_json::json!(["a"]), "{letters:?}");
        db.pg.execute(&format!("UPDATE {table} SET d = NULL WHERE id IN (2, 30)")).await;
    }
    assert_settled_equal(&db, &["t", "whole"]).await;
    drop(daemon);
    db.cleanup().await;
}
