//! ClickHouse is slow: walhouse goes at its pace, in few inserts and in the memory that it was given.

use std::time::{Duration, Instant};

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Postgres, Proxy, TestDb, assert_equal_within, eventually, settled, stored,
};

const BUDGET_MIB: u64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_follows_a_clickhouse_of_a_tenth_of_the_speed_within_the_budget() {
    let db = TestDb::new("pace").await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    db.pg.execute("CREATE TABLE burst (id int8 PRIMARY KEY, payload text NOT NULL)").await;
    let config =
        format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n[memory]\nbudget = \"{BUDGET_MIB}MiB\"\n", proxy.port());
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    // At full speed: how long the rows take, how many bytes they are, and what memory that needs.
    let (begun, passed) = (Instant::now(), proxy.passed());
    write(&db, 0).await;
    let (full, bytes, before) = (begun.elapsed(), proxy.passed() - passed, daemon.rss_bytes());
    let limit = bytes as f64 / full.as_secs_f64() / 10.0;
    proxy.slow_down(limit as u64);
    let begun = Instant::now();
    let mut written = Box::pin(write(&db, 1));
    let mut most = before;
    let (mut position, mut last_step, mut longest_stand) = (None, Instant::now(), Duration::ZERO);
    loop {
        tokio::select! {
            () = written.as_mut() => break,
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                most = most.max(daemon.rss_bytes());
                let now = stored(&db.ch, &db.name).await.expect("ClickHouse answers");
                if now != position {
                    (position, last_step) = (now, Instant::now());
                }
                longest_stand = longest_stand.max(last_step.elapsed());
            }
        }
    }
    let (slow, ideal) = (begun.elapsed().as_secs_f64(), bytes as f64 / limit);
    println!(
        "{bytes} bytes: {full:?} at full speed, {slow:.1} s at a tenth, which allows {ideal:.1} s; \
        {} MiB before, at most {} MiB; the checkpoint stood still for {longest_stand:?} at most",
        before >> 20,
        most >> 20
    );
    assert!(slow < 1.5 * ideal, "slower than ClickHouse is");
    assert!(most < before + ((2 * BUDGET_MIB) << 20), "grew from {before} to {most} bytes");
    assert!(longest_stand.as_secs_f64() < 0.5 * slow, "it goes in jerks");
    drop(written);
    proxy.slow_down(0);
    assert_equal_within(&db, "burst", Duration::from_secs(30)).await;
    drop(daemon);
    db.cleanup().await;
}

/// 60 MiB in transactions of 1 MiB, until ClickHouse has them.
async fn write(db: &TestDb, round: u32) {
    for part in 0..60 {
        let from = (round * 60 + part) * 400;
        let sql = format!(
            "INSERT INTO burst SELECT {from} + i, repeat(md5(i::text || {from}), 80) FROM generate_series(1, 400) i"
        );
        db.pg.execute(&sql).await;
    }
    let rows = ((round + 1) * 24_000).to_string();
    eventually(Duration::from_secs(240), async || match db.ch.try_query("SELECT count() FROM burst FINAL").await? {
        found if found == rows => Ok(()),
        found => Err(format!("{found} of {rows} rows")),
    })
    .await;
}

/// An insert costs ClickHouse about the same with one row as with a thousand.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_slow_clickhouse_is_sent_in_one_insert_per_table() {
    const TABLES: usize = 60;
    let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(2 << 30), ..Default::default() });
    let db = TestDb::on(Postgres::shared(), clickhouse, "grow").await;
    let each = |sql: &str| (0..TABLES).map(|i| sql.replace("{}", &i.to_string())).collect::<String>();
    db.pg.execute(&each("CREATE TABLE t{} (id int PRIMARY KEY);")).await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let inserts = async || daemon.metric("walhouse_insert_seconds_count", "").await;
    let before = inserts().await;
    db.clickhouse.freeze();
    let until = Instant::now() + Duration::from_secs(5);
    let mut rows = 0;
    while Instant::now() < until {
        db.pg.execute(&format!("BEGIN; {} COMMIT", each(&format!("INSERT INTO t{{}} VALUES ({rows});")))).await;
        rows += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    db.clickhouse.resume();
    settled(&db).await;
    let made = inserts().await - before;
    println!("{made} inserts for {rows} transactions of {TABLES} tables");
    assert!(made <= 2.0 * TABLES as f64 + 16.0, "{made} inserts");
    for table in [0, TABLES / 2, TABLES - 1] {
        assert_equal_within(&db, &format!("t{table}"), Duration::from_secs(10)).await;
    }
    drop(daemon);
    db.cleanup().await;
}
