//! ClickHouse: it answers, and does not take what comes.

use super::{equal, watched};
use crate::support::{ClickHouse, ClickHouseOptions, Daemon, Postgres, TestDb, eventually, steps, take};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn inserts_that_clickhouse_has_no_room_for_are_told_and_done_once_it_has() {
    let db = TestDb::new("book_inserts").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let thresholds = [
        ("walhouse_insert_errors_total[5m])) > 5", "walhouse_insert_errors_total[20m])) > 2"),
        ("for: 10m", "for: 2m"),
    ];
    let prometheus = watched(&db, &daemon, "WalhouseInsertsFail", &thresholds).await;
    // A disk that is too full for this table, whatever it is.
    db.ch.query("ALTER TABLE item MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1").await;
    db.pg.execute("INSERT INTO item SELECT generate_series(1, 100)").await;
    let alert = prometheus.fires("WalhouseInsertsFail").await;
    assert_eq!(alert["labels"]["kind"], "transient");
    assert!(daemon.log().contains("NOT_ENOUGH_SPACE"), "{}", daemon.log());
    // It is not ClickHouse that is away.
    assert_eq!(daemon.metric("walhouse_dependency_up", "clickhouse").await, 1.0);

    let taken = steps("WalhouseInsertsFail", &db);
    let [errors, disks, wants, verify] = &taken[..] else { panic!("{taken:?}") };
    let found = take(errors, &db, &daemon).await;
    assert!(found.contains("NOT_ENOUGH_SPACE\t"), "{found}");
    let found = take(disks, &db, &daemon).await;
    assert!(found.starts_with("default\t") && found.ends_with("iB"), "{found}");
    let found = take(wants, &db, &daemon).await;
    assert!(found.contains("item\tmin_free_disk_ratio_to_perform_insert = 1"), "{found}");
    db.ch.query("ALTER TABLE item RESET SETTING min_free_disk_ratio_to_perform_insert").await;
    eventually(Duration::from_secs(60), async || match take(verify, &db, &daemon).await {
        equal if equal.ends_with("The table is equal.\n") => Ok(()),
        other => Err(other),
    })
    .await;
    prometheus.rests("WalhouseInsertsFail").await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_nobody_merges_are_told_until_merges_run_again() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse, "book_parts").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY); INSERT INTO item VALUES (1)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseTooManyParts", &[("> 800", "> 80"), ("for: 10m", "for: 2m")]).await;
    db.ch.query("SYSTEM STOP MERGES").await;
    // The same row again and again, as small batches would bring it: nothing is different afterwards.
    let single = "max_block_size = 1, min_insert_block_size_rows = 1, max_insert_threads = 1, max_threads = 1";
    let same = "SELECT 1, (SELECT max(_version) FROM item), 0 FROM numbers(100)";
    db.ch.query(&format!("INSERT INTO item (id, _version, _is_deleted) {same} SETTINGS {single}")).await;
    let alert = prometheus.fires("WalhouseTooManyParts").await;
    let parts = daemon.metric("walhouse_clickhouse_partition_parts_max", "").await;
    assert!(parts > 80.0, "{parts} {alert}");

    let taken = steps("WalhouseTooManyParts", &db);
    let [table, merges, start] = &taken[..] else { panic!("{taken:?}") };
    let found = take(table, &db, &daemon).await;
    assert!(found.starts_with("item\tall\t10"), "{found}");
    assert_eq!(take(merges, &db, &daemon).await, "");
    take(start, &db, &daemon).await;
    prometheus.rests("WalhouseTooManyParts").await;
    assert!(daemon.metric("walhouse_clickhouse_partition_parts_max", "").await <= 80.0);
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
