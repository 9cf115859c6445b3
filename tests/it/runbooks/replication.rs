//! Replication: late, without a checkpoint, or broken off again and again.

use std::time::Duration;

use super::{equal, slow_down, speed_up, watched};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Pg, Postgres, PostgresOptions, TestDb, eventually, steps, take,
};

/// A commit ten times a second.
async fn trickle(pg: Pg) {
    for id in 0.. {
        pg.execute(&format!("INSERT INTO item VALUES ({id}, 'x')")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_arrive_late_are_told_with_what_they_wait_for() {
    let db = TestDb::new("book_latency").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseLatencyHigh", &[("> 300", "> 2")]).await;
    slow_down(&db).await;
    let load = tokio::spawn(trickle(db.pg.clone()));
    prometheus.fires("WalhouseLatencyHigh").await;
    eventually(Duration::from_secs(20), async || match daemon.metric("walhouse_lag_seconds", "").await {
        late if late > 2.0 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;

    let taken = steps("WalhouseLatencyHigh", &db);
    let [status, checkpoint, inserts] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert!(found.contains(" before the end of the WAL"), "{found}");
    // At times one has just been stored.
    eventually(Duration::from_secs(60), async || {
        let found = take(checkpoint, &db, &daemon).await;
        let age = found.rsplit('\t').next().and_then(|age| age.parse::<u64>().ok());
        if age >= Some(1) { Ok(()) } else { Err(found) }
    })
    .await;
    eventually(Duration::from_secs(20), async || match take(inserts, &db, &daemon).await {
        found if found.contains("INSERT INTO") && found.contains("item") => Ok(()),
        other => Err(other),
    })
    .await;
    load.abort();
    speed_up(&db).await;
    prometheus.rests("WalhouseLatencyHigh").await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_waits_for_a_server_is_stored_once_that_answers() {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse, "book_checkpoint").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY, v text)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(&db, &daemon, "WalhouseNoCheckpoint", &[("> 600", "> 6")]).await;
    db.clickhouse.freeze();
    db.pg.execute("INSERT INTO item SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 10000) i").await;
    let before = daemon.metric("walhouse_checkpoint_timestamp_seconds", "").await;
    prometheus.fires("WalhouseNoCheckpoint").await;

    let taken = steps("WalhouseNoCheckpoint", &db);
    let [status, check] = &taken[..] else { panic!("{taken:?}") };
    let found = take(status, &db, &daemon).await;
    assert!(found.contains("ClickHouse   can not be reached: "), "{found}");
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("✓ PostgreSQL") && found.contains("✗ ClickHouse"), "{found}");
    db.clickhouse.resume();
    prometheus.rests("WalhouseNoCheckpoint").await;
    equal(&daemon).await;
    assert!(daemon.metric("walhouse_checkpoint_timestamp_seconds", "").await > before);
    drop((prometheus, daemon));
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_end_for_want_of_connections_are_told_until_there_are_some() {
    let settings = vec![("max_connections", "24".to_owned()), ("max_wal_senders", "4".to_owned())];
    let postgres = Postgres::private(PostgresOptions { settings, ..Default::default() });
    let db = TestDb::on(postgres, ClickHouse::shared(), "book_reconnects").await;
    db.pg.execute("CREATE TABLE item (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let prometheus = watched(
        &db,
        &daemon,
        "WalhouseReconnects",
        &[("walhouse_reconnects_total[10m]) > 5", "walhouse_reconnects_total[10m]) > 2")],
    )
    .await;

    // A pool that leaks takes whatever walhouse gives up.
    let mut leaked = Vec::new();
    let own = "application_name LIKE 'walhouse%' AND backend_type IN ('client backend', 'walsender')";
    eventually(Duration::from_secs(60), async || {
        while let Ok(session) = db.pg.connect().await {
            session.batch_execute("SET application_name = 'shop'").await.map_err(|error| error.to_string())?;
            leaked.push(session);
        }
        let ended = db.pg.query(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {own}")).await;
        if ended.is_empty() { Ok(()) } else { Err(format!("{} sessions of walhouse", ended.len())) }
    })
    .await;
    prometheus.fires("WalhouseReconnects").await;
    assert!(daemon.log().contains("the session ended"), "{}", daemon.log());

    let taken = steps("WalhouseReconnects", &db);
    let [check, who, settings, end] = &taken[..] else { panic!("{taken:?}") };
    let found = take(check, &db, &daemon).await;
    assert!(found.contains("✗ PostgreSQL") && found.contains("too many clients"), "{found}");
    let found = take(who, &db, &daemon).await;
    assert!(found.starts_with("postgres\tshop\tidle\t"), "{found}");
    let found = take(settings, &db, &daemon).await;
    assert!(found.contains("max_connections\t24") && found.contains("wal_sender_timeout\t60000"), "{found}");
    let ended: usize = take(end, &db, &daemon).await.parse().unwrap();
    assert!(ended >= leaked.len(), "{ended}");
    prometheus.rests("WalhouseReconnects").await;
    db.pg.execute("INSERT INTO item VALUES (1)").await;
    daemon.wait_ready().await;
    equal(&daemon).await;
    drop((prometheus, daemon));
    db.cleanup().await;
}
