//! Changes that a copy alone can follow, and copies that were asked for.

use std::time::Duration;

use super::{STOP, copies, replicated};
use crate::support::{
    Daemon, Past, TestDb, assert_equal, assert_settled_equal, eventually, settled, stopped, walhouse,
};

/// Waits until a table was copied anew, and its target is the only one again.
async fn wait_for_copy(db: &TestDb, table: &str, before: &str) {
    let uuid = format!(
        "SELECT uuid, status FROM _tables FINAL WHERE table_name = '{table}' AND uuid != '{before}' AND fresh = ''"
    );
    eventually(Duration::from_secs(60), async || match db.ch.try_query(&uuid).await? {
        found if found.ends_with("\tstreaming") => Ok(()),
        found => Err(format!("{table}: {found}; {:?}", db.ch.try_query("SELECT * FROM _tables FINAL").await)),
    })
    .await;
    let fresh = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE '%\\_\\_resync'";
    eventually(Duration::from_secs(10), async || match db.ch.try_query(fresh).await?.as_str() {
        "0" => Ok(()),
        found => Err(format!("{found} fresh targets are left")),
    })
    .await;
}

async fn uuid(db: &TestDb, table: &str) -> String {
    db.ch.query(&format!("SELECT uuid FROM _tables FINAL WHERE table_name = '{table}'")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_makes_values_without_streaming_them_is_copied() {
    for (label, change) in [
        ("type", "ALTER TABLE t ALTER n TYPE int8"),
        ("using", "ALTER TABLE t ALTER n TYPE int USING n * 100"),
        ("volatile", "ALTER TABLE t ADD COLUMN r float8 DEFAULT random()"),
        ("serial", "ALTER TABLE t ADD COLUMN s serial"),
        ("again", "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text DEFAULT 'new'"),
        (
            "exchanged",
            "ALTER TABLE t RENAME v TO x; ALTER TABLE t ADD COLUMN w text; ALTER TABLE t RENAME x TO w2; ALTER TABLE t RENAME w TO v; UPDATE t SET v = 'a' WHERE id = 1; ALTER TABLE t DROP COLUMN w2",
        ),
        ("key", "ALTER TABLE t RENAME id TO key"),
    ] {
        println!("{label}: {change}");
        let (db, daemon) = replicated(&format!("anew_{label}")).await;
        let before = uuid(&db, "t").await;
        db.pg.execute(change).await;
        wait_for_copy(&db, "t", &before).await;
        db.pg.execute("INSERT INTO other VALUES (2); UPDATE t SET n = n + 1 WHERE n > 1").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        assert!(copies(&daemon).await >= 1.0);
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_of_an_enum_that_is_renamed_is_copied_and_a_new_one_is_not() {
    let db = TestDb::new("anew_enum").await;
    db.pg.execute("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t VALUES (1, 'sad'), (2, 'ok')").await;
    let mut daemon = Daemon::spawn(&db, "");
    daemon.wait_ready().await;
    let before = uuid(&db, "t").await;
    db.pg.execute("ALTER TYPE mood ADD VALUE 'happy' BEFORE 'ok'").await;
    db.pg.execute("INSERT INTO t VALUES (3, 'happy')").await;
    assert_settled_equal(&db, &["t"]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(uuid(&db, "t").await, before);
    db.pg.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'low'").await;
    wait_for_copy(&db, "t", &before).await;
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_that_only_moves_rows_is_not_copied() {
    let (db, daemon) = replicated("anew_not").await;
    let before = uuid(&db, "t").await;
    db.pg.execute("VACUUM FULL t").await;
    db.pg.execute("CLUSTER t USING t_pkey").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    db.pg.execute("ALTER TABLE t ALTER v SET STATISTICS 50").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    db.pg.execute("INSERT INTO t VALUES (4, 'after', 4)").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(uuid(&db, "t").await, before);
    assert_eq!(copies(&daemon).await, 0.0);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_key_is_another_stops_alone_and_a_resync_brings_it_back() {
    let (db, daemon) = replicated("anew_stop").await;
    db.pg
        .execute("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (n); UPDATE t SET v = 'changed' WHERE n = 1")
        .await;
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.contains("its key is another now") && reason.contains("walhouse resync") => Ok(()),
        reason => Err(reason),
    })
    .await;
    db.pg.execute("INSERT INTO other VALUES (2)").await;
    settled(&db).await;
    assert_equal(&db, "other").await;
    let resync = walhouse(daemon.config(), &["resync", "public.t"]).await;
    assert_eq!(resync.code, Some(0), "{resync:?}");
    db.pg.execute("INSERT INTO t VALUES (1, 'same id, other key', 9)").await;
    assert_settled_equal(&db, &["t"]).await;
    assert_eq!(
        db.ch.query("SELECT sorting_key FROM system.tables WHERE database = currentDatabase() AND name = 't'").await,
        "(n)"
    );
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_goes_on_beside_the_live_table_through_kills() {
    let db = TestDb::new("anew_kill").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, 'copied', repeat(md5(i::text), 80) FROM generate_series(1, 30000) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    // Harm that no stream would mend.
    db.ch.query("INSERT INTO t (id, v, _version) SELECT 40000, 'not there', 1").await;
    let before = uuid(&db, "t").await;
    let ask = walhouse(daemon.config(), &["resync", "public.t", "--no-wait"]).await;
    assert_eq!(ask.code, Some(0), "{ask:?}");
    let pg = db.pg.clone();
    let load = tokio::spawn(async move {
        for i in 1..=300 {
            pg.execute(&format!(
                "UPDATE t SET v = 'u{i}' WHERE id = {i}; DELETE FROM t WHERE id = {}; UPDATE t SET id = -id WHERE id = {}; INSERT INTO t VALUES ({}, 'new', 'n')",
                i + 1000, i + 2000, i + 50000
            ))
            .await;
        }
    });
    for pause in [3500, 300, 700] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        daemon.kill9();
        daemon.start();
    }
    load.await.expect("the load ends");
    wait_for_copy(&db, "t", &before).await;
    assert_settled_equal(&db, &["t"]).await;
    // Nothing from before the resync comes back with a replay.
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    past.restore(&db, None).await;
    daemon.start();
    assert_settled_equal(&db, &["t"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_tells_what_can_not_be_done() {
    let (db, mut daemon) = replicated("anew_refused").await;
    let refused = walhouse(daemon.config(), &["resync", "public.nothing"]).await;
    assert!(refused.code == Some(2) && refused.stderr.contains("does not replicate"), "{refused:?}");
    let done = walhouse(daemon.config(), &["resync", "public.t", "public.other"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(daemon.sigterm(STOP).await.code(), Some(0));
    let nobody = walhouse(daemon.config(), &["resync", "public.t", "--timeout", "2s"]).await;
    assert!(nobody.code == Some(1) && nobody.stderr.contains("walhouse run"), "{nobody:?}");
    db.cleanup().await;
}
