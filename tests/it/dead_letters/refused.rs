//! Rows that ClickHouse itself refuses: they are found in their batch, and the others land.

use std::time::Duration;

use super::{ANCIENT, assert_none_stopped, create, ids, letters};
use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal, eventually, settled, stopped};

const CHECK: &str = "ADD CONSTRAINT small CHECK ifNull(n, 0) < 1000";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_violate_a_constraint_are_found_and_the_others_land() {
    let db = TestDb::new("refused").await;
    for table in ["t", "other"] {
        create(&db, table).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.ch.query(&format!("ALTER TABLE t {CHECK}")).await;
    // The first row and the last, two neighbours, and one that walhouse finds itself.
    let odd = "i IN (1, 7, 8, 500)";
    db.pg
        .execute(&format!(
            "INSERT INTO t SELECT i, CASE WHEN {odd} THEN 1000 + i ELSE i END, CASE WHEN i = 9 THEN {ANCIENT}::date ELSE '2020-02-02' END
             FROM generate_series(1, 500) i"
        ))
        .await;
    settled(&db).await;
    assert_none_stopped(&db).await;
    let found = letters(&db, "t").await;
    let mut keys: Vec<i32> = found.iter().map(|letter| letter.key["id"].as_str().unwrap().parse().unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, [1, 7, 8, 9, 500]);
    assert_eq!(db.ch.query("SELECT count() FROM t FINAL").await, "495");
    for letter in found.iter().filter(|letter| letter.key["id"] != "9") {
        assert_eq!(letter.reason, "ClickHouse: VIOLATED_CONSTRAINT (code 469)");
        assert_eq!((letter.operation.as_str(), letter.column.as_str()), ("upsert", ""));
        let id: i32 = letter.key["id"].as_str().unwrap().parse().unwrap();
        let new = serde_json::json!({"id": id.to_string(), "n": (1000 + id).to_string(), "d": "2020-02-02"});
        assert_eq!(letter.envelope["new"], new);
    }
    assert_eq!(daemon.metric("walhouse_dead_letters_total", "reason=\"refused\"").await, 4.0);
    assert!(daemon.metric("walhouse_insert_errors_total", "kind=\"refused\"").await >= 1.0);
    // They are counted every half a minute.
    eventually(Duration::from_secs(90), async || {
        match daemon.metric("walhouse_dead_letters_stored", "public.t").await {
            5.0 => Ok(()),
            other => Err(format!("{other} letters")),
        }
    })
    .await;
    assert!(!daemon.log().contains("1500"), "a value was told");

    // A key change into a refused row still removes the old key; good changes bring rows home.
    db.pg.execute("UPDATE t SET id = 1002, n = 2000 WHERE id = 2").await;
    settled(&db).await;
    assert_eq!(db.ch.query("SELECT count() FROM t FINAL WHERE id IN (2, 1002)").await, "0");
    db.pg
        .execute("UPDATE t SET n = 1 WHERE n >= 1000; UPDATE t SET d = NULL WHERE id = 9; DELETE FROM t WHERE id = 7")
        .await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_which_too_many_rows_are_refused_stops_and_so_does_one_that_was_altered() {
    let db = TestDb::new("refused_cap").await;
    for table in ["all", "gone", "just", "other"] {
        create(&db, &format!("\"{table}\"")).await;
    }
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for table in ["`all`", "just"] {
        db.ch.query(&format!("ALTER TABLE {table} {CHECK}")).await;
    }
    db.ch.query("DROP TABLE gone SYNC").await;
    let rows = |from: u32, to: u32| format!("SELECT i, 1000 + i, NULL FROM generate_series({from}, {to}) i");
    db.pg.execute(&format!("INSERT INTO \"all\" {}", rows(1, 101))).await;
    db.pg.execute(&format!("INSERT INTO just {}", rows(1, 100))).await;
    db.pg.execute("INSERT INTO gone VALUES (1, 1, NULL); INSERT INTO other VALUES (1, 1, NULL)").await;
    settled(&db).await;
    let reasons = stopped(&db).await.expect("ClickHouse answers");
    let lines: Vec<_> = reasons.lines().collect();
    assert_eq!(lines.len(), 2, "{reasons}");
    assert!(lines[0].starts_with("all\tClickHouse refuses too many of its rows, 101 of 101"), "{reasons}");
    assert!(lines[0].contains("VIOLATED_CONSTRAINT"), "{reasons}");
    assert!(
        lines[1].starts_with("gone\tClickHouse refuses its rows") && lines[1].contains("UNKNOWN_TABLE"),
        "{reasons}"
    );
    assert_eq!(letters(&db, "all").await.len(), 0, "half of a stop");
    assert_eq!(letters(&db, "just").await.len(), 100);
    assert_equal(&db, "other").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_stops_its_table_where_that_is_wanted() {
    let db = TestDb::new("refused_fail").await;
    create(&db, "t").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nunrepresentable = \"fail\"\n");
    daemon.wait_ready().await;
    db.ch.query(&format!("ALTER TABLE t {CHECK}")).await;
    db.pg.execute("INSERT INTO t VALUES (1, 1, NULL), (2, 2000, NULL)").await;
    settled(&db).await;
    let reason = stopped(&db).await.expect("ClickHouse answers");
    assert!(reason.contains("VIOLATED_CONSTRAINT (code 469)"), "{reason}");
    assert_eq!((ids(&db, "t").await.as_str(), letters(&db, "t").await.len()), ("[]", 0));
    drop(daemon);
    db.cleanup().await;
}
