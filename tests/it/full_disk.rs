//! ClickHouse's disk is full. It mostly notices before it writes; these are the calls that find it out where it did not.

use std::time::Duration;

use crate::support::{ClickHouse, ClickHouseOptions, Daemon, Postgres, TestDb, assert_equal_within, is_root};

/// Room enough.
const BYTES: u64 = 256 << 20;
const FILES: u64 = 1_000_000;

/// `None` where it can not be had.
async fn with_small_disk(label: &str) -> Option<TestDb> {
    if !is_root() {
        println!("left out: a small disk is mounted by root alone");
        return None;
    }
    let options = ClickHouseOptions { memory: Some(2 << 30), disk: Some(BYTES), ..Default::default() };
    Some(TestDb::on(Postgres::shared(), ClickHouse::private(options), label).await)
}

/// Of the server alone: without it nothing else that is tested on a full disk would say anything.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_whose_writes_fail_is_none() {
    let Some(db) = with_small_disk("failed_writes").await else { return };
    db.ch.create_database().await;
    // As many bytes as ClickHouse looks for; the files of a part are a few more.
    let (room, row) = (2 << 20, "randomString(2097152 - 16)");
    for synced in [0, 1] {
        let settings = format!("fsync_after_insert = {synced}");
        db.ch
            .query(&format!("CREATE TABLE t{synced} (b String) ENGINE = MergeTree ORDER BY () SETTINGS {settings}"))
            .await;
        let insert = format!("INSERT INTO t{synced} SELECT {row}");
        db.clickhouse.disk().limit_bytes(room);
        let refused = db.ch.try_query(&insert).await.expect_err("there is no room");
        assert!(refused.contains("No space left on device"), "{refused}");
        db.clickhouse.disk().limit_bytes(BYTES);
        assert_eq!(db.ch.query(&format!("SELECT count() FROM t{synced}")).await, "0");
        db.ch.query(&insert).await;
    }
    db.clickhouse.disk().limit_bytes(0);
    let refused = db.ch.try_query("ALTER TABLE t0 ADD COLUMN c String").await.expect_err("there is no room");
    assert!(refused.contains("No space left on device"), "{refused}");
    db.clickhouse.disk().limit_bytes(BYTES);
    db.clickhouse.kill9();
    db.clickhouse.start();
    for synced in [0, 1] {
        assert_eq!(db.ch.query(&format!("SELECT sum(length(b)) FROM t{synced}")).await, "2097136");
    }
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_for_another_file_is_waited_out() {
    let Some(db) = with_small_disk("no_more_files").await else { return };
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item VALUES (0)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    // Not the directory of a part; the directory, and not all that is in it.
    let calls = [(0, "ClickHouse: code 1001: its disk is full"), (4, "CANNOT_OPEN_FILE (code 76): its disk is full")];
    for (files, told) in calls {
        assert_equal_within(&db, "item", Duration::from_secs(60)).await;
        db.clickhouse.disk().limit_files(files);
        db.pg.execute("INSERT INTO item SELECT max(id) + 1 FROM item; UPDATE item SET id = -1 - id WHERE id = 0").await;
        daemon.wait_log(told, 1).await;
        db.clickhouse.disk().limit_files(FILES);
    }
    assert_equal_within(&db, "item", Duration::from_secs(60)).await;
    drop(daemon);
    db.cleanup().await;
}
