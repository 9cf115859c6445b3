//! Rows that ClickHouse can not hold: they become dead letters, the rows around them go in, and nothing old comes back
//! to life.

mod masked;
mod refused;
mod toast;

use std::time::Duration;

use serde_json::Value;

use crate::support::{Daemon, Past, TestDb, assert_equal, assert_settled_equal, settled, stopped, walhouse};

/// A letter as ClickHouse gives it.
#[derive(Debug)]
struct Letter {
    operation: String,
    key: Value,
    column: String,
    reason: String,
    envelope: Value,
}

/// The letters of a table, by version and key.
async fn letters(db: &TestDb, table: &str) -> Vec<Letter> {
    let sql = format!(
        "SELECT operation, key, column_name, reason, envelope FROM _dead_letters FINAL
         WHERE slot = '{}' AND target = '{table}' ORDER BY version, key FORMAT JSONCompactEachRow",
        db.name
    );
    let text = db.ch.query(&sql).await;
    let parsed = text.lines().map(|line| {
        let [operation, key, column, reason, envelope]: [String; 5] = serde_json::from_str(line).expect("five strings");
        let json = |text: &str| serde_json::from_str(text).expect("the column holds JSON");
        Letter { operation, key: json(&key), column, reason, envelope: json(&envelope) }
    });
    parsed.collect()
}

/// What was done to which key, in the order of the versions.
async fn lost(db: &TestDb, table: &str) -> Vec<String> {
    letters(db, table).await.iter().map(|letter| format!("{} {}", letter.operation, letter.key)).collect()
}

/// The rows of a table whose dates can be held, on both sides.
async fn ids(db: &TestDb, table: &str) -> String {
    db.ch.query(&format!("SELECT arraySort(groupArray(id)) FROM {table} FINAL WHERE _is_deleted = 0")).await
}

/// The statements of docs/operations.md.
async fn assert_documented(db: &TestDb) {
    let docs = include_str!("../../docs/operations.md");
    let section =
        docs.split("## Dead letters").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let blocks = section.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let run = async |sql: &str| {
        let sql = sql.replace("'walhouse'", &format!("'{}'", db.name)).replace("sales_order", "streamed");
        db.ch.query(&sql).await
    };
    let [count, rows, delete]: [&str; 3] = blocks.collect::<Vec<_>>().try_into().expect("three statements");
    assert_eq!(run(count).await.lines().filter(|line| line.contains("\td\t")).count(), 4, "two reasons for each table");
    let rows = run(rows).await;
    assert!(rows.lines().any(|line| line.contains("insert\td\tinfinity\t")), "{rows}");
    run(delete).await;
    assert_eq!((lost(db, "streamed").await.len(), lost(db, "copied").await.len()), (0, 3));
}

async fn assert_none_stopped(db: &TestDb) {
    assert_eq!(stopped(db).await.as_deref(), Ok(""));
}

/// A table whose column `d` can not hold every date.
async fn create(db: &TestDb, table: &str) {
    db.pg.execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY, n int, d date)")).await;
}

const ANCIENT: &str = "'0044-03-15 BC'";

#[tokio::test(flavor = "multi_thread")]
async fn rows_around_a_lost_one_go_in_from_the_copy_and_from_the_stream() {
    let db = TestDb::new("letters").await;
    for table in ["copied", "streamed"] {
        create(&db, table).await;
    }
    let rows =
        format!("(1, 1, {ANCIENT}), (2, 2, '2020-01-01'), (3, 3, 'infinity'), (4, NULL, NULL), (5, 5, {ANCIENT})");
    db.pg.execute(&format!("INSERT INTO copied VALUES {rows}")).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // One batch: its first row, one in the middle, its last row.
    db.pg.execute(&format!("INSERT INTO streamed VALUES {rows}")).await;
    settled(&db).await;
    assert_none_stopped(&db).await;
    for (table, operation) in [("copied", "copy"), ("streamed", "insert")] {
        assert_eq!(ids(&db, table).await, "[2,4]", "{table}");
        let letters = letters(&db, table).await;
        let keys: Vec<_> = letters.iter().map(|letter| letter.key["id"].as_str().unwrap()).collect();
        assert_eq!(keys, ["1", "3", "5"], "{table}");
        for letter in &letters {
            assert_eq!((letter.operation.as_str(), letter.column.as_str()), (operation, "d"));
            assert!(letter.reason.contains("can not hold") && !letter.reason.contains("0044"), "{letter:?}");
        }
        assert_eq!(letters[0].envelope, serde_json::json!({"new": {"id": "1", "n": "1", "d": "0044-03-15 BC"}}));
        assert_eq!(daemon.metric("walhouse_dead_letters_total", &format!("public.{table}")).await, 3.0);
    }
    let transaction = "SELECT commit_lsn > 0, xid IS NOT NULL, abs(dateDiff('second', committed_at, now())) < 60,
         oid > 0, schema_name, table_name FROM _dead_letters FINAL WHERE target = 'streamed' LIMIT 1";
    assert_eq!(db.ch.query(transaction).await, "1\t1\t1\t1\tpublic\tstreamed");
    for word in ["0044", "infinity\""] {
        assert!(!daemon.log().contains(word) && !daemon.metrics().await.contains(word), "a value was told: {word}");
    }
    assert_eq!(daemon.log().matches("rows went to the dead letters").count(), 2, "one line for each table");
    // verify names them, and says where to look.
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(1), "{verify:?}");
    for expected in ["id=3: missing in ClickHouse", "public.copied: 3 dead letters; SELECT"] {
        assert!(verify.stdout.contains(expected), "{expected}: {verify:?}");
    }
    assert_documented(&db).await;

    // The next change of each row brings it home.
    for table in ["copied", "streamed"] {
        db.pg
            .execute(&format!(
                "UPDATE {table} SET d = '2021-01-01' WHERE id IN (1, 3); DELETE FROM {table} WHERE id = 5"
            ))
            .await;
    }
    assert_settled_equal(&db, &["copied", "streamed"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_update_leaves_the_row_as_it_was_and_a_lost_key_change_removes_the_old_key() {
    let db = TestDb::new("letters_update").await;
    create(&db, "t").await;
    db.pg
        .execute("CREATE TABLE whole (id int PRIMARY KEY, n int, d date); ALTER TABLE whole REPLICA IDENTITY FULL")
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for table in ["t", "whole"] {
        db.pg.execute(&format!("INSERT INTO {table} SELECT i, i, '2020-01-01' FROM generate_series(1, 4) i")).await;
        settled(&db).await;
        db.pg
            .execute(&format!(
                "UPDATE {table} SET n = 10, d = {ANCIENT} WHERE id = 1;
                 UPDATE {table} SET id = 20, d = 'infinity' WHERE id = 2;
                 UPDATE {table} SET n = 30 WHERE id = 3; UPDATE {table} SET n = 40, d = {ANCIENT} WHERE id = 4;
                 DELETE FROM {table} WHERE id = 4"
            ))
            .await;
        settled(&db).await;
        assert_none_stopped(&db).await;
        let rows = format!("SELECT groupArray((id, n)) FROM (SELECT id, n FROM {table} FINAL ORDER BY id)");
        assert_eq!(db.ch.query(&rows).await, "[(1,1),(3,30)]", "{table}");
        assert_eq!(
            lost(&db, table).await,
            [r#"update {"id":"1"}"#, r#"update {"id":"20"}"#, r#"update {"id":"4"}"#],
            "{table}"
        );
        let letters = letters(&db, table).await;
        assert_eq!(letters[1].envelope["new"]["id"], "20");
        assert_eq!(letters[1].envelope["old"]["id"], "2");
        assert_eq!(letters[1].envelope["old"]["d"].is_string(), table == "whole");
        // A good change, also of the key, and a delete.
        db.pg
            .execute(&format!(
                "UPDATE {table} SET d = NULL WHERE id = 1; UPDATE {table} SET id = 21, d = '2022-02-02' WHERE id = 20"
            ))
            .await;
    }
    assert_settled_equal(&db, &["t", "whole"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_can_not_be_held_loses_its_rows_and_stops_nothing() {
    let db = TestDb::new("letters_key").await;
    let big = "repeat('x', 3000)";
    db.pg
        .execute(
            "CREATE TABLE t (d date PRIMARY KEY, n int); CREATE TABLE u (d date PRIMARY KEY, n int, a text);
             ALTER TABLE u ALTER a SET STORAGE EXTERNAL",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(&format!(
            "INSERT INTO t VALUES ({ANCIENT}, 1), ('infinity', 2), ('2020-01-01', 3), ('2020-01-02', 4), ('2300-05-05', 5);
             UPDATE t SET n = 10 WHERE d = {ANCIENT}; DELETE FROM t WHERE d = 'infinity';
             UPDATE t SET d = '-infinity' WHERE d = '2020-01-01'; UPDATE t SET d = '2020-03-03' WHERE d = '2300-05-05';
             INSERT INTO u VALUES ({ANCIENT}, 1, {big}), ('2020-01-01', 2, {big})"
        ))
        .await;
    settled(&db).await;
    // It comes from a key that can not be held, without a value; and goes to one.
    db.pg.execute(&format!("UPDATE u SET d = '2020-02-02' WHERE d = {ANCIENT}")).await;
    db.pg.execute("UPDATE u SET d = 'infinity' WHERE d = '2020-01-01'").await;
    settled(&db).await;
    assert_none_stopped(&db).await;
    let of = |operation: &str, key: &str| format!(r#"{operation} {{"d":"{key}"}}"#);
    assert_eq!(
        lost(&db, "t").await,
        [
            of("insert", "0044-03-15 BC"),
            of("insert", "infinity"),
            of("insert", "2300-05-05"),
            of("update", "0044-03-15 BC"),
            of("delete", "infinity"),
            of("update", "-infinity"),
            of("delete", "2300-05-05"),
        ]
    );
    let rows = "SELECT groupArray((toString(d), n)) FROM (SELECT d, n FROM t FINAL WHERE _is_deleted = 0 ORDER BY d)";
    assert_eq!(db.ch.query(rows).await, "[('2020-01-02',4),('2020-03-03',5)]");
    assert_eq!(
        lost(&db, "u").await,
        [of("insert", "0044-03-15 BC"), of("delete", "0044-03-15 BC"), of("update", "infinity")]
    );
    let rows = "SELECT groupArray((toString(d), n, length(a))) FROM (SELECT * FROM u FINAL WHERE _is_deleted = 0)";
    assert_eq!(db.ch.query(rows).await, "[('2020-02-02',1,3000)]");
    db.pg
        .execute(&format!("DELETE FROM t WHERE d = {ANCIENT} OR d = '-infinity'; DELETE FROM u WHERE d = 'infinity'"))
        .await;
    assert_settled_equal(&db, &["t", "u"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_the_same_after_crashes_and_replays() {
    let db = TestDb::new("letters_replay").await;
    create(&db, "t").await;
    create(&db, "copied").await;
    db.pg.execute(&format!("INSERT INTO copied VALUES (1, 1, {ANCIENT}), (2, 2, NULL)")).await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_rows = 7\n");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    let change = |i: u32| {
        format!(
            "INSERT INTO t VALUES ({i}, {i}, CASE {i} % 3 WHEN 0 THEN {ANCIENT}::date END);
             UPDATE t SET d = 'infinity' WHERE id = {i} - 1; UPDATE t SET d = NULL, n = -n WHERE id = {i} - 2"
        )
    };
    // A stop would be here if more than one hundred were lost.
    for i in 0..45 {
        db.pg.execute(&change(i)).await;
        if i % 15 == 7 {
            daemon.kill9();
            daemon.start();
        }
    }
    settled(&db).await;
    assert_none_stopped(&db).await;
    let all = "SELECT count(), count(DISTINCT key, version), sum(cityHash64(key, version, envelope, reason, operation))
         FROM _dead_letters FINAL WHERE target = 't'";
    let before = db.ch.query(all).await;
    assert!(before.starts_with("60\t60\t") || before.starts_with("59\t59\t"), "{before}");
    for _ in 0..2 {
        daemon.sigterm(Duration::from_secs(20)).await;
        past.restore(&db, None).await;
        daemon.start();
        settled(&db).await;
        assert_eq!(db.ch.query(all).await, before);
    }
    db.pg.execute("UPDATE t SET d = NULL; UPDATE copied SET d = NULL").await;
    assert_settled_equal(&db, &["t", "copied"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_its_letter_is_durable() {
    let db = TestDb::new("letters_durable").await;
    create(&db, "t").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // Letters have nowhere to go; the rows beside them have.
    db.ch.query("RENAME TABLE _dead_letters TO away").await;
    let before = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg.execute(&format!("INSERT INTO t VALUES (1, 1, NULL), (2, 2, {ANCIENT}), (3, 3, NULL)")).await;
    let (code, log) = daemon.wait_exit(Duration::from_secs(30)).await;
    assert!(code == 3 && log.contains("UNKNOWN_TABLE"), "{code}: {log}");
    let confirmed = "SELECT confirmed_flush_lsn <= $1 FROM pg_replication_slots WHERE slot_name = $2";
    let confirmed = confirmed.replace("$1", &format!("'{before}'")).replace("$2", &format!("'{}'", db.name));
    assert_eq!(db.pg.value(&confirmed).await, "t", "a change was acknowledged, and its letter is nowhere");
    assert_eq!((ids(&db, "t").await.as_str(), stopped(&db).await.as_deref()), ("[1,3]", Ok("")));
    daemon.start();
    settled(&db).await;
    assert_eq!(lost(&db, "t").await, [r#"insert {"id":"2"}"#]);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_the_stop_of_its_table_is_stored() {
    let db = TestDb::new("letters_stop").await;
    create(&db, "t").await;
    create(&db, "other").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nunrepresentable = \"fail\"");
    daemon.wait_ready().await;
    // What is known of the tables has nowhere to go.
    db.ch.query("RENAME TABLE _tables TO away").await;
    let before = db.pg.value("SELECT pg_current_wal_lsn()").await;
    db.pg
        .execute(&format!(
            "INSERT INTO t VALUES (1, 1, NULL), (2, 2, {ANCIENT}); INSERT INTO other VALUES (1, 1, NULL)"
        ))
        .await;
    let (code, log) = daemon.wait_exit(Duration::from_secs(30)).await;
    assert!(code == 3 && log.contains("UNKNOWN_TABLE"), "{code}: {log}");
    let confirmed =
        format!("SELECT confirmed_flush_lsn <= '{before}' FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    assert_eq!(db.pg.value(&confirmed).await, "t", "a change was dropped and acknowledged, and nothing tells of it");
    db.ch.query("RENAME TABLE away TO _tables").await;
    daemon.start();
    settled(&db).await;
    assert!(stopped(&db).await.unwrap().starts_with("t\ta row has a value"));
    assert_equal(&db, "other").await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_loses_too_many_rows_stops() {
    let db = TestDb::new("letters_cap").await;
    for table in ["few", "many", "copied", "good"] {
        create(&db, table).await;
    }
    let some = |from: u32, to: u32, odd: u32| {
        format!("SELECT i, i, CASE WHEN i < {odd} THEN {ANCIENT}::date END FROM generate_series({from}, {to}) i")
    };
    db.pg.execute(&format!("INSERT INTO copied {}", some(0, 999, 101))).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute(&format!("INSERT INTO few {}", some(0, 999, 100))).await;
    // Beyond a hundred, one in a hundred.
    db.pg.execute(&format!("INSERT INTO few {}", some(1_000, 20_000, 0))).await;
    settled(&db).await;
    db.pg.execute(&format!("UPDATE few SET d = {ANCIENT} WHERE id BETWEEN 2000 AND 2050")).await;
    db.pg.execute(&format!("INSERT INTO many {}", some(0, 9_999, 101))).await;
    db.pg.execute("INSERT INTO good VALUES (1, 1, NULL)").await;
    settled(&db).await;
    let reasons = stopped(&db).await.expect("ClickHouse answers");
    let tables: Vec<_> = reasons.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
    assert_eq!(tables, ["copied", "many"], "{reasons}");
    for line in reasons.lines() {
        assert!(
            line.contains("101 of the ") && line.contains("column d: ") && line.matches("walhouse resync").count() == 1,
            "{line}"
        );
        assert!(!line.contains("0044"), "{line}");
    }
    assert_equal(&db, "good").await;
    assert_eq!(letters(&db, "few").await.len(), 151);
    // The batch that was too much leaves nothing; what came in earlier ones may be there.
    for table in ["many", "copied"] {
        let there = letters(&db, table).await.len();
        assert!(there <= 100, "{table}: {there} letters, and the batch was not taken");
    }
    assert_eq!(db.ch.query("SELECT count() FROM many WHERE id > 9000").await, "0", "rows after a stop");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_large_letters_are_held_within_the_budget() {
    const MIB: u64 = 1 << 20;
    let db = TestDb::new("letters_memory").await;
    db.pg
        .execute("CREATE TABLE wide (id int PRIMARY KEY, d date, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL")
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    daemon.kill9();
    db.pg
        .execute(&format!(
            "INSERT INTO wide SELECT i, CASE WHEN i % 2 = 0 THEN {ANCIENT}::date END, repeat(md5(i::text), 65536)
             FROM generate_series(1, 80) i"
        ))
        .await;
    daemon.start();
    settled(&db).await;
    assert_none_stopped(&db).await;
    assert_eq!(db.ch.query("SELECT count() FROM wide").await, "40");
    let sizes = "SELECT count(), min(length(envelope)) > 2097152 FROM _dead_letters FINAL";
    assert_eq!(db.ch.query(sizes).await, "40\t1");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("walhouse is running");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has a VmHWM");
    let peak = line.trim().trim_end_matches(" kB").parse::<u64>().expect("VmHWM is in kB") * 1024;
    println!("peak: {} MiB", peak / MIB);
    assert!(peak < 160 * MIB, "{} MiB", peak / MIB);
    drop(daemon);
    db.cleanup().await;
}
