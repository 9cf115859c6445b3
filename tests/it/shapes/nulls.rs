//! Changes of the shape of tables whose values are replaced by NULL where ClickHouse can not hold them.

use std::time::Duration;

use super::STOP;
use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal, eventually, settled, stopped};

const OPTION: &str = "[tables.\"public.t\"]\nunrepresentable = \"null\"";

/// A table with a column that is NOT NULL and takes NULL in ClickHouse, where that stands for infinity.
async fn replicated(label: &str, option: &str) -> (TestDb, Daemon) {
    let db = TestDb::new(label).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, d date NOT NULL, v text); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t VALUES (1, '2020-01-01', 'copied'), (2, 'infinity', 'copied')",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, option);
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO t VALUES (3, '-infinity', 'streamed'), (4, '2020-01-04', 'streamed')").await;
    shown(&db, "SELECT id, d FROM t_current ORDER BY id", "1\t2020-01-01\n2\t\\N\n3\t\\N\n4\t2020-01-04").await;
    (db, daemon)
}

async fn shown(db: &TestDb, sql: &str, expected: &str) {
    eventually(Duration::from_secs(20), async || match db.ch.try_query(sql).await? {
        found if found == expected => Ok(()),
        found => Err(format!("{sql}: {found:?}")),
    })
    .await;
}

/// No table has stopped, and no row is lost.
async fn assert_whole(db: &TestDb) {
    settled(db).await;
    assert_eq!(stopped(db).await.as_deref(), Ok(""));
    assert_eq!(db.ch.query("SELECT count() FROM _dead_letters FINAL").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replaced_by_null_goes_on_being_so_through_changes_of_shape() {
    let old = "3\t\\N\n4\t2020-01-04";
    for (label, change, insert, shown_as, expected) in [
        (
            "null_drop",
            "DROP COLUMN d",
            "(5, 'new')",
            "SELECT id, d FROM t FINAL ORDER BY id",
            format!("1\t2020-01-01\n2\t\\N\n{old}\n5\t\\N"),
        ),
        (
            "null_rename",
            "RENAME d TO e",
            "(5, 'infinity', 'new')",
            "SELECT id, e FROM t_current ORDER BY id",
            format!("1\t2020-01-01\n2\t\\N\n{old}\n5\t\\N"),
        ),
        (
            "null_add",
            "ADD COLUMN e date NOT NULL DEFAULT '2021-01-01'",
            "(5, '2020-01-05', 'new', 'infinity')",
            "SELECT id, d, e FROM t_current ORDER BY id",
            format!(
                "1\t2020-01-01\t2021-01-01\n2\t\\N\t2021-01-01\n{}\n5\t2020-01-05\t\\N",
                "3\t\\N\t2021-01-01\n4\t2020-01-04\t2021-01-01"
            ),
        ),
        (
            "null_default",
            "ADD COLUMN e date NOT NULL DEFAULT 'infinity'",
            "(5, '2020-01-05', 'new', '2021-01-01')",
            "SELECT id, e FROM t_current ORDER BY id",
            "1\t\\N\n2\t\\N\n3\t\\N\n4\t\\N\n5\t2021-01-01".to_owned(),
        ),
        (
            "null_type",
            "ALTER d TYPE timestamptz",
            "(5, 'infinity', 'new')",
            "SELECT id, toDate(d) FROM t_current ORDER BY id",
            format!("1\t2020-01-01\n2\t\\N\n{old}\n5\t\\N"),
        ),
        (
            "null_held",
            "ALTER d TYPE text",
            "(5, 'anything', 'new')",
            "SELECT id, d FROM t_current ORDER BY id",
            "1\t2020-01-01\n2\tinfinity\n3\t-infinity\n4\t2020-01-04\n5\tanything".to_owned(),
        ),
        (
            "null_loose",
            "ALTER d DROP NOT NULL",
            "(5, NULL, 'new'), (6, 'infinity', 'new')",
            "SELECT id, d FROM t_current ORDER BY id",
            format!("1\t2020-01-01\n2\t\\N\n{old}\n5\t\\N\n6\t\\N"),
        ),
    ] {
        let (db, mut daemon) = replicated(label, OPTION).await;
        db.pg.execute(&format!("ALTER TABLE t {change}; INSERT INTO t VALUES {insert}")).await;
        shown(&db, shown_as, &expected).await;
        assert_whole(&db).await;
        // And once more without what it was told before.
        assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
        daemon.start();
        daemon.wait_ready().await;
        db.pg.execute("UPDATE t SET v = 'later' WHERE id IN (2, 3)").await;
        settled(&db).await;
        shown(&db, shown_as, &expected).await;
        shown(&db, "SELECT count() FROM t_current WHERE v = 'later'", "2").await;
        assert_whole(&db).await;
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_of_a_column_that_is_gone_stops_its_table_alone_until_it_is_corrected() {
    for (label, change) in [("null_gone", "DROP COLUMN d"), ("null_renamed", "RENAME d TO e")] {
        let (db, mut daemon) = replicated(label, "[tables.\"public.t\"]\ncolumns.d.unrepresentable = \"null\"").await;
        db.pg.execute(&format!("ALTER TABLE t {change}; UPDATE t SET v = 'after' WHERE id = 1")).await;
        eventually(Duration::from_secs(20), async || match stopped(&db).await? {
            reason if reason.contains("names in columns a column d, which it does not have: correct the name") => {
                Ok(())
            }
            reason => Err(reason),
        })
        .await;
        db.pg.execute("INSERT INTO other VALUES (1)").await;
        assert_equal(&db, "other").await;
        daemon.kill9();
        let option =
            if label == "null_gone" { "" } else { "[tables.\"public.t\"]\ncolumns.e.unrepresentable = \"null\"" };
        let mut daemon = Daemon::spawn(&db, option);
        daemon.wait_ready().await;
        db.pg.execute("UPDATE t SET v = 'later' WHERE id = 4").await;
        if label == "null_gone" {
            assert_settled_equal(&db, &["t", "other"]).await;
        }
        shown(
            &db,
            "SELECT groupArray(v) FROM (SELECT v FROM t_current ORDER BY id)",
            "['after','copied','streamed','later']",
        )
        .await;
        assert_whole(&db).await;
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_null_instead_does_so_when_nobody_asks_for_it_any_more() {
    let (db, mut daemon) = replicated("null_kept", OPTION).await;
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("ALTER TABLE t ADD COLUMN w int DEFAULT 9; INSERT INTO t VALUES (5, '2020-01-05', 'new')").await;
    settled(&db).await;
    db.pg
        .execute("ALTER TABLE t RENAME d TO e; INSERT INTO t VALUES (6, '2020-01-06', 'new'), (7, 'infinity', 'lost')")
        .await;
    settled(&db).await;
    let rows = "SELECT id, e, w FROM t_current ORDER BY id FORMAT CSV";
    let expected = "1,\"2020-01-01\",9\n2,\\N,9\n3,\\N,9\n4,\"2020-01-04\",9\n5,\"2020-01-05\",9\n6,\"2020-01-06\",9";
    shown(&db, rows, expected).await;
    assert_eq!(stopped(&db).await.as_deref(), Ok(""));
    assert_eq!(db.ch.query("SELECT JSONExtractString(key, 'id') FROM _dead_letters FINAL").await, "7");
    assert_eq!(super::copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}
