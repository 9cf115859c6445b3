//! The stream: truncates, replica identities, large and odd transactions, the idle slot, what is told of all of it.

use std::time::{Duration, Instant};

use crate::support::{Daemon, Pg, TestDb, assert_equal, eventually, walhouse};

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_removes_what_came_before_it_and_nothing_else() {
    let db = TestDb::new("stream_truncate").await;
    db.pg
        .execute(
            "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text);
            CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
            CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
            INSERT INTO a SELECT i, 'copied' FROM generate_series(1, 100) i; INSERT INTO b TABLE a;
            INSERT INTO parent SELECT generate_series(1, 9); INSERT INTO child SELECT i, i FROM generate_series(1, 9) i;
            INSERT INTO other VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let tables = ["a", "b", "parent", "child", "other"];
    for (step, sql) in [
        "INSERT INTO a VALUES (101, 'before'); TRUNCATE a, b; INSERT INTO b VALUES (1, 'after')",
        "BEGIN; INSERT INTO a VALUES (1, 'gone'), (2, 'gone'); UPDATE b SET v = 'gone'; TRUNCATE a, b;
            INSERT INTO a VALUES (2, 'kept'), (3, 'kept'); DELETE FROM a WHERE id = 3; UPDATE a SET id = 4 WHERE id = 2;
            TRUNCATE b; INSERT INTO b VALUES (7, 'kept'); COMMIT",
        "BEGIN; INSERT INTO parent VALUES (10); TRUNCATE parent CASCADE; INSERT INTO parent VALUES (1);
            INSERT INTO child VALUES (1, 1); COMMIT",
        "BEGIN; TRUNCATE a; ROLLBACK; BEGIN; SAVEPOINT s; TRUNCATE b; ROLLBACK TO s; INSERT INTO b VALUES (8, 'kept'); COMMIT",
        "TRUNCATE a RESTART IDENTITY; TRUNCATE child",
        "INSERT INTO a VALUES (1, 'last'), (4, 'last')",
    ]
    .into_iter()
    .enumerate()
    {
        db.pg.execute(sql).await;
        // Half of the steps are seen one by one, the others in one go.
        if step % 2 == 1 {
            for table in tables {
                assert_equal(&db, table).await;
            }
        }
    }
    // A replay of all of it changes nothing.
    daemon.kill9();
    daemon.start();
    daemon.wait_ready().await;
    for table in tables {
        assert_equal(&db, table).await;
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_may_be_full_or_another_index() {
    let db = TestDb::new("stream_identity").await;
    db.pg
        .execute(
            "CREATE TABLE complete (id int, region text, v text, big text, PRIMARY KEY (region, id));
            ALTER TABLE complete REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, part int NOT NULL, v text, big text);
            CREATE UNIQUE INDEX by_code ON by_index (part, code);
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_code, ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE keyless (code text NOT NULL, v text); CREATE UNIQUE INDEX keyless_code ON keyless (code);
            ALTER TABLE keyless REPLICA IDENTITY USING INDEX keyless_code;
            CREATE TABLE swapped (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, code int NOT NULL UNIQUE, v text);
            ALTER TABLE swapped REPLICA IDENTITY USING INDEX swapped_code_key;
            INSERT INTO complete SELECT i, 'r' || i % 3, 'copied', repeat(md5(i::text), 100) FROM generate_series(1, 300) i;
            INSERT INTO by_index SELECT id, 'c' || id, id % 5, v, big FROM complete;
            INSERT INTO keyless SELECT 'k' || i, 'copied' FROM generate_series(1, 300) i;
            INSERT INTO swapped SELECT i, i, 'copied' FROM generate_series(1, 300) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "UPDATE complete SET v = 'updated' WHERE id % 2 = 0; UPDATE complete SET region = 'moved' WHERE id % 5 = 0;
            DELETE FROM complete WHERE id % 7 = 0; INSERT INTO complete VALUES (1, 'new', NULL, NULL);
            UPDATE by_index SET v = 'updated' WHERE id % 2 = 0; UPDATE by_index SET id = id + 1000 WHERE id % 3 = 0;
            UPDATE by_index SET code = 'moved' || id, part = 9 WHERE id % 5 = 0; DELETE FROM by_index WHERE id % 7 = 0;
            UPDATE keyless SET v = 'updated', code = code || '!' WHERE code LIKE 'k1%'; DELETE FROM keyless WHERE code = 'k2';
            BEGIN; UPDATE swapped SET id = 301 - id; UPDATE swapped SET code = -code WHERE id % 2 = 0; COMMIT;
            DELETE FROM swapped WHERE id % 7 = 0",
        )
        .await;
    for table in ["complete", "by_index", "keyless", "swapped"] {
        assert_equal(&db, table).await;
    }
    let key = "SELECT sorting_key FROM system.tables WHERE database = currentDatabase() AND name = ";
    assert_eq!(db.ch.query(&format!("{key} 'by_index'")).await, "part, code");
    assert_eq!(db.ch.query(&format!("{key} 'complete'")).await, "region, id");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_300_000_rows_arrives_whole() {
    let db = TestDb::new("stream_large").await;
    db.pg.execute("CREATE TABLE large (id int PRIMARY KEY, v text); CREATE TABLE small (id int PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_rows = 20000\n");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO large SELECT i, 'row ' || i FROM generate_series(1, 200000) i;
            INSERT INTO small VALUES (1); UPDATE large SET v = 'updated' WHERE id % 4 = 0;
            DELETE FROM large WHERE id % 10 = 0; UPDATE large SET id = -id WHERE id % 10 = 1 AND id < 100000;
            INSERT INTO small VALUES (2); COMMIT",
        )
        .await;
    // Never a part of it: the checkpoint moves to its end only.
    eventually(Duration::from_secs(60), async || {
        let arrived = db.ch.query("SELECT count() FROM large FINAL WHERE _is_deleted = 0").await;
        if arrived == "180000" { Ok(()) } else { Err(arrived) }
    })
    .await;
    assert_equal(&db, "large").await;
    assert_equal(&db, "small").await;
    assert_eq!(daemon.metric("walhouse_rows_received_total", "table=\"public.large\"").await, 280_000.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rolled_back_never_arrives() {
    let db = TestDb::new("stream_rollback").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'a')").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg
        .execute(
            "BEGIN; INSERT INTO item VALUES (2, 'kept'); SAVEPOINT s; INSERT INTO item VALUES (3, 'gone');
            UPDATE item SET v = 'gone' WHERE id = 1; SAVEPOINT t; DELETE FROM item WHERE id = 2; RELEASE t; ROLLBACK TO s;
            UPDATE item SET v = 'kept' WHERE id = 1; SAVEPOINT u; INSERT INTO item VALUES (4, 'kept'); RELEASE u; COMMIT;
            BEGIN; INSERT INTO item VALUES (5, 'gone'); UPDATE item SET v = 'gone'; ROLLBACK;
            DO $$ BEGIN FOR i IN 10..300 LOOP BEGIN
                INSERT INTO item VALUES (i, 'sub'); IF i % 3 = 0 THEN RAISE EXCEPTION 'undone'; END IF;
            EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;
            BEGIN; INSERT INTO item VALUES (1000, 'two phases'); SAVEPOINT v; DELETE FROM item WHERE id = 10; ROLLBACK TO v; COMMIT",
        )
        .await;
    assert_equal(&db, "item").await;
    let gone = db.ch.query("SELECT count() FROM item WHERE v = 'gone'").await;
    assert_eq!(gone, "0");
    drop(daemon);
    db.cleanup().await;
}

/// Where the server may remove WAL up to, as bytes.
async fn confirmed(db: &TestDb) -> u64 {
    let sql =
        format!("SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    db.pg.value(&sql).await.parse().expect("a number")
}

async fn position(pg: &Pg) -> u64 {
    pg.value("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8").await.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_moves_on_when_only_others_write() {
    let db = TestDb::new("stream_idle").await;
    let elsewhere = TestDb::new("stream_elsewhere").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE keyless (v text)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    elsewhere.pg.execute("CREATE TABLE other (v text)").await;
    for pg in [&db.pg, &elsewhere.pg] {
        let table = if pg.url() == db.pg.url() { "keyless" } else { "other" };
        pg.execute(&format!("INSERT INTO {table} SELECT repeat('x', 1000) FROM generate_series(1, 5000)")).await;
        let written = position(pg).await;
        eventually(Duration::from_secs(10), async || {
            let slot = confirmed(&db).await;
            if slot >= written { Ok(()) } else { Err(format!("{} bytes of WAL are held", written - slot)) }
        })
        .await;
        let stored: u64 = db.ch.query("SELECT max(lsn) FROM _checkpoint").await.parse().expect("a number");
        assert!(stored >= written, "acknowledged before it was stored");
    }
    drop(daemon);
    elsewhere.cleanup().await;
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgement_follows_durability_within_a_second() {
    let db = TestDb::new("stream_ack").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v int)").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    for id in 1..=5 {
        db.pg.execute(&format!("INSERT INTO item VALUES ({id})")).await;
        let written = position(&db.pg).await;
        eventually(Duration::from_secs(20), async || {
            let arrived = db.ch.query(&format!("SELECT count() FROM item WHERE id = {id}")).await;
            if arrived == "1" { Ok(()) } else { Err("not there yet".to_owned()) }
        })
        .await;
        let durable = Instant::now();
        loop {
            let slot = confirmed(&db).await;
            // The commit's own record is the last one, but for what others write meanwhile.
            if slot + 200 >= written || slot >= position(&db.pg).await {
                break;
            }
            // Twice the promise: the machine may be busy with other tests.
            assert!(durable.elapsed() < Duration::from_secs(2), "{} bytes are not acknowledged", written - slot);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_told_to_prometheus_and_to_supervisors() {
    let db = TestDb::new("stream_metrics").await;
    db.pg.execute("CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item SELECT i, 'a' FROM generate_series(1, 50) i").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item SELECT i, 'b' FROM generate_series(51, 80) i; DELETE FROM item WHERE id <= 5; UPDATE item SET id = 900 WHERE id = 80").await;
    assert_equal(&db, "item").await;
    let table = "table=\"public.item\"";
    assert_eq!(daemon.metric("walhouse_rows_received_total", table).await, 36.0);
    // A key change writes a tombstone and a row.
    assert_eq!(daemon.metric("walhouse_rows_written_total", table).await, 37.0);
    assert_eq!(daemon.metric("walhouse_copy_rows_total", table).await, 50.0);
    assert_eq!(daemon.metric("walhouse_copy_progress_ratio", table).await, 1.0);
    assert_eq!(daemon.metric("walhouse_copy_pending_tables", "").await, 0.0);
    assert_eq!(daemon.metric("walhouse_tables_stopped", "").await, 0.0);
    assert_eq!(daemon.metric("walhouse_reconnects_total", "").await, 0.0);
    assert!(daemon.metric("walhouse_source_bytes_total", "").await > 0.0);
    // The checkpoint follows the rows.
    eventually(Duration::from_secs(10), async || match daemon.metric("walhouse_checkpoint_position_bytes", "").await {
        found if found > 0.0 && daemon.metric("walhouse_commit_to_durable_seconds_count", "").await >= 1.0 => Ok(()),
        found => Err(format!("the checkpoint is {found}")),
    })
    .await;
    assert!(daemon.metric("walhouse_insert_seconds_count", "").await >= 2.0);
    assert!(daemon.metric("walhouse_insert_seconds_bucket", "le=\"+Inf\"").await >= 2.0);
    assert_eq!(daemon.metric("walhouse_build_info", "version=").await, 1.0);
    let page = daemon.metrics().await;
    for name in ["walhouse_source_lag_bytes", "walhouse_lag_seconds", "walhouse_memory_in_flight_bytes"] {
        assert!(page.contains(&format!("# TYPE {name} gauge")) && page.contains(&format!("\n{name} ")), "{page}");
    }
    assert!(
        page.contains("# TYPE walhouse_insert_seconds histogram") && page.contains("walhouse_insert_seconds_bucket{"),
        "{page}"
    );
    let (health, ready) = (daemon.get("/healthz").await, daemon.get("/readyz").await);
    assert!(health.is_ok_and(|answer| answer.status == 200 && answer.body == "ok\n"));
    assert!(ready.is_ok_and(|answer| answer.status == 200 && answer.body == "ready\n"));

    // A connection that is lost is counted, and comes back.
    db.pg
        .execute(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}'",
            db.name
        ))
        .await;
    eventually(Duration::from_secs(20), async || match daemon.metric("walhouse_reconnects_total", "").await {
        found if found >= 1.0 => Ok(()),
        _ => Err("no reconnect was counted".to_owned()),
    })
    .await;
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO item VALUES (1000, 'after')").await;
    assert_equal(&db, "item").await;
    eventually(Duration::from_secs(10), async || match daemon.metric("walhouse_lag_seconds", "").await {
        lag if lag < 1.0 => Ok(()),
        lag => Err(format!("{lag} s behind")),
    })
    .await;
    let verify = walhouse(daemon.config(), &["verify"]).await;
    assert_eq!(verify.code, Some(0), "{verify:?}");
    drop(daemon);
    db.cleanup().await;
}
