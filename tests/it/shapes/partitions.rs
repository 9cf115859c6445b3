//! Partitions that come and go, with and without rows.

use std::time::Duration;

use super::copies;
use crate::support::{Daemon, TestDb, assert_equal, assert_settled_equal};

async fn partitioned(label: &str) -> (TestDb, Daemon) {
    let db = TestDb::new(label).await;
    db.pg
        .execute(
            "CREATE TABLE r (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10); CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (20);
             INSERT INTO r SELECT i, i % 20 FROM generate_series(1, 100) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    assert_equal(&db, "r").await;
    (db, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_made_empty_needs_no_copy() {
    let (db, daemon) = partitioned("part_new").await;
    db.pg.execute("CREATE TABLE r3 PARTITION OF r FOR VALUES FROM (20) TO (30); INSERT INTO r VALUES (1, 25)").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    db.pg.execute("INSERT INTO r VALUES (2, 25)").await;
    assert_settled_equal(&db, &["r"]).await;
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_or_go_with_a_partition_are_noticed() {
    let (db, daemon) = partitioned("part_rows").await;
    for change in [
        "CREATE TABLE r3 (id int NOT NULL, at int NOT NULL); INSERT INTO r3 VALUES (1, 25), (2, 26); ALTER TABLE r ATTACH PARTITION r3 FOR VALUES FROM (20) TO (30)",
        "BEGIN; CREATE TABLE r4 (id int NOT NULL, at int NOT NULL); INSERT INTO r4 VALUES (1, 35); ALTER TABLE r ATTACH PARTITION r4 FOR VALUES FROM (30) TO (40); COMMIT",
        "BEGIN; ALTER TABLE r DETACH PARTITION r2; UPDATE r2 SET id = -id WHERE id % 3 = 0; ALTER TABLE r ATTACH PARTITION r2 FOR VALUES FROM (10) TO (20); COMMIT",
        "ALTER TABLE r DETACH PARTITION r1",
        "DROP TABLE r3",
        "TRUNCATE r2",
    ] {
        println!("{change}");
        db.pg.execute(change).await;
        assert_equal(&db, "r").await;
        db.pg.execute("DELETE FROM r WHERE id = 77; INSERT INTO r VALUES (77, 11)").await;
        assert_settled_equal(&db, &["r"]).await;
    }
    assert!(copies(&daemon).await >= 6.0);
    drop(daemon);
    db.cleanup().await;
}
