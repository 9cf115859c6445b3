//! Tables that get other names, go, and come.

use std::time::Duration;

use super::replicated;
use crate::support::{assert_equal, assert_settled_equal, eventually, settled, stopped};

#[tokio::test(flavor = "multi_thread")]
async fn a_target_goes_with_the_name_of_its_table() {
    let (db, daemon) = replicated("name_rename").await;
    let uuid = db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await;
    db.pg.execute("ALTER TABLE t RENAME TO renamed; INSERT INTO renamed VALUES (4, 'after', 4)").await;
    eventually(Duration::from_secs(20), async || {
        match db.ch.try_query("SELECT count() FROM renamed_current").await?.as_str() {
            "4" => Ok(()),
            found => Err(format!("{found} rows")),
        }
    })
    .await;
    db.pg.execute("UPDATE renamed SET v = 'more'").await;
    assert_settled_equal(&db, &["renamed"]).await;
    assert_eq!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'renamed'").await, uuid);
    let left =
        "SELECT groupArray(name) FROM system.tables WHERE database = currentDatabase() AND name IN ('t', 't_current')";
    assert_eq!(db.ch.query(left).await, "[]");
    db.pg.execute("CREATE SCHEMA crm; ALTER TABLE renamed SET SCHEMA crm").await;
    // Outside of what is replicated.
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.contains("does not match source.tables") => Ok(()),
        reason => Err(reason),
    })
    .await;
    assert_eq!(db.ch.query("SELECT count() FROM renamed FINAL").await, "4", "what is there stays");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_and_rewritten_at_once_has_its_rows_under_the_new_name() {
    let (db, mut daemon) = replicated("name_both").await;
    db.pg
        .execute(
            "ALTER TABLE t ALTER n TYPE int8; ALTER TABLE t RENAME TO moved; INSERT INTO moved VALUES (4, 'after', 4)",
        )
        .await;
    assert_equal(&db, "moved").await;
    db.pg.execute("UPDATE moved SET n = n + 5000000000").await;
    assert_settled_equal(&db, &["moved"]).await;
    let left =
        "SELECT groupArray(name) FROM system.tables WHERE database = currentDatabase() AND name IN ('t', 't_current')";
    assert_eq!(db.ch.query(left).await, "[]");
    assert_eq!(daemon.sigterm(super::STOP).await.code(), Some(0));
    daemon.start();
    daemon.wait_ready().await;
    db.pg.execute("DELETE FROM moved WHERE id = 1").await;
    assert_settled_equal(&db, &["moved"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_the_place_of_another_has_its_rows_and_no_others() {
    let (db, daemon) = replicated("name_swap").await;
    db.pg.execute("CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new VALUES (7, 'new')").await;
    assert_equal(&db, "t_new").await;
    db.pg.execute("BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; INSERT INTO t VALUES (8, 'newer'); COMMIT").await;
    eventually(Duration::from_secs(20), async || {
        match db.ch.try_query("SELECT count() FROM t_old_current").await?.as_str() {
            "3" => Ok(()),
            found => Err(format!("{found} rows")),
        }
    })
    .await;
    assert_equal(&db, "t").await;
    assert_settled_equal(&db, &["t", "t_old"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_stays_as_it_was_until_its_name_comes_again() {
    let (db, daemon) = replicated("name_drop").await;
    db.pg.execute("DROP TABLE t").await;
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.contains("it was dropped") => Ok(()),
        reason => Err(reason),
    })
    .await;
    assert_eq!(db.ch.query("SELECT count() FROM t FINAL").await, "3");
    db.pg
        .execute(
            "INSERT INTO other VALUES (2); CREATE TABLE t (key text PRIMARY KEY); INSERT INTO t VALUES ('another')",
        )
        .await;
    assert_equal(&db, "t").await;
    db.pg.execute("INSERT INTO t VALUES ('one more')").await;
    settled(&db).await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_left_the_publication_is_copied_when_it_comes_back() {
    let (db, daemon) = replicated("name_member").await;
    db.pg.execute("ALTER PUBLICATION walhouse DROP TABLE t; INSERT INTO t VALUES (4, 'unseen', 4); DELETE FROM t WHERE id = 1").await;
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.contains("not in the publication any more") => Ok(()),
        reason => Err(reason),
    })
    .await;
    db.pg.execute("ALTER PUBLICATION walhouse ADD TABLE t; INSERT INTO t VALUES (5, 'seen', 5)").await;
    assert_equal(&db, "t").await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}
