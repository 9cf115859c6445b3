//! Changes of shape, of names and of memberships that come while a copy of the same table is under way.

use std::time::Duration;

use tokio_postgres::Client;

use super::{copies, replicated};
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Exit, Postgres, TestDb, assert_equal, assert_settled_equal, eventually,
    settled, stopped, walhouse,
};

/// A session whose open transaction writes `t`: a copy of it does not begin its first chunk before that ends.
pub(super) async fn writer(db: &TestDb) -> Client {
    let session = db.pg.connect().await.expect("PostgreSQL takes one more session");
    run(&session, "BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE").await;
    session
}

pub(super) async fn run(session: &Client, sql: &str) {
    session.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Asks for a resync of `t` and waits until its fresh target is fed; returns that one's UUID.
pub(super) async fn begin_resync(db: &TestDb, daemon: &Daemon) -> String {
    let asked = walhouse(daemon.config(), &["resync", "public.t", "--no-wait"]).await;
    assert_eq!(asked.code, Some(0), "{asked:?}");
    fresh(db, "").await
}

/// Waits until a fresh target of `t`, which is not `before`, is fed, and returns its UUID.
pub(super) async fn fresh(db: &TestDb, before: &str) -> String {
    let sql = "SELECT JSONExtractString(fresh, 'uuid') FROM _tables FINAL
               WHERE table_name = 't' AND JSONExtractString(fresh, 'membership') != ''";
    eventually(Duration::from_secs(20), async || match db.ch.try_query(sql).await? {
        uuid if uuid.is_empty() || uuid == before => Err(format!("the fresh target is '{uuid}'")),
        uuid => Ok(uuid),
    })
    .await
}

/// Waits until no table has a fresh target, in what is stored and in ClickHouse.
pub(super) async fn no_fresh(db: &TestDb) {
    let sql = "SELECT (SELECT count() FROM _tables FINAL WHERE fresh != ''),
               (SELECT count() FROM system.tables WHERE database = currentDatabase() AND name LIKE '%\\_\\_resync')";
    eventually(Duration::from_secs(20), async || match db.ch.try_query(sql).await?.as_str() {
        "0\t0" => Ok(()),
        found => Err(format!("fresh targets, stored and there: {found}")),
    })
    .await;
}

async fn wait_for_stop(db: &TestDb, words: &str) {
    eventually(Duration::from_secs(20), async || match stopped(db).await? {
        reason if reason.contains(words) => Ok(()),
        reason => Err(reason),
    })
    .await;
}

/// Four chunks, `change` between two of them, and the copy's end.
async fn between_chunks(label: &str, change: &str) -> (TestDb, Daemon) {
    let clickhouse = ClickHouse::private(ClickHouseOptions::default());
    let db = TestDb::on(Postgres::shared(), clickhouse.clone(), label).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
             ALTER TABLE t ALTER v SET STORAGE PLAIN;
             INSERT INTO t SELECT g, repeat('x', 7900) FROM generate_series(1, 14000) g",
        )
        .await;
    let daemon = Daemon::spawn(&db, "[source.snapshot]\nworkers = 1");
    let chunks = "SELECT count() FROM _chunks";
    eventually(Duration::from_secs(60), async || match db.ch.try_query(chunks).await?.as_str() {
        "0" => Err("no chunk is done".to_owned()),
        _ => Ok(()),
    })
    .await;
    clickhouse.freeze();
    let (session, statement) = (db.pg.connect().await.expect("a session"), change.to_owned());
    let between = tokio::spawn(async move { session.batch_execute(&statement).await });
    let queue = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN (SELECT oid FROM pg_class WHERE relname = 't')";
    eventually(Duration::from_secs(15), async || match db.pg.value(queue).await.as_str() {
        "0" => Err("the change does not wait for a chunk".to_owned()),
        _ => Ok(()),
    })
    .await;
    clickhouse.resume();
    between.await.expect("the change does not panic").expect("the change succeeds");
    let done: u32 = db.ch.query(chunks).await.parse().expect("a number");
    assert!((1..4).contains(&done), "{done} of 4 chunks before the change: it came too late");
    (db, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_between_the_chunks_of_its_copy_is_copied_to_its_end() {
    let (db, mut daemon) = between_chunks("cross_rename", "ALTER TABLE t RENAME TO moved").await;
    let uuid = db.ch.query("SELECT uuid FROM _tables FINAL").await;
    db.pg.execute("INSERT INTO moved VALUES (0, 'after'); UPDATE moved SET v = 'updated' WHERE id = 13000").await;
    eventually(Duration::from_secs(30), async || {
        db.ch.try_query("SELECT count() FROM moved_current").await.map(|_there| ())
    })
    .await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["moved"]).await;
    assert_eq!(
        db.ch.query("SELECT table_name, target, uuid FROM _tables FINAL").await,
        format!("moved\tmoved\t{uuid}")
    );
    assert_eq!(copies(&daemon).await, 0.0, "what was copied under the old name counts");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_no_row_of_the_table_that_has_its_tables_name_now() {
    let (db, mut daemon) = between_chunks(
        "cross_renamed",
        "BEGIN; ALTER TABLE t RENAME TO moved; CREATE TABLE t (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
         ALTER TABLE t ALTER v SET STORAGE PLAIN;
         INSERT INTO t SELECT g, repeat('y', 7900) FROM generate_series(20001, 26000) g; COMMIT",
    )
    .await;
    db.pg.execute("INSERT INTO moved VALUES (0, 'after'); DELETE FROM moved WHERE id = 13000").await;
    eventually(Duration::from_secs(60), async || {
        db.ch.try_query("SELECT count() FROM moved_current").await.map(|_there| ())
    })
    .await;
    assert_equal(&db, "t").await;
    db.pg.execute("INSERT INTO t VALUES (1, 'new'); INSERT INTO moved VALUES (-1, 'old')").await;
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["moved", "t"]).await;
    assert_eq!(db.ch.query("SELECT countIf(v LIKE 'y%') FROM moved").await, "0");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_while_it_is_resynced_gets_both() {
    let (db, mut daemon) = replicated("cross_resync_rename").await;
    // Harm that no stream would mend: only a copy takes it away.
    db.ch.query("INSERT INTO t (id, v, n, _version) VALUES (40000, 'not there', 1, 1)").await;
    let session = writer(&db).await;
    let filled = begin_resync(&db, &daemon).await;
    run(&session, "INSERT INTO t VALUES (4, 'before', 4); ALTER TABLE t RENAME TO moved; INSERT INTO moved VALUES (5, 'after', 5); COMMIT").await;
    db.pg
        .execute(
            "UPDATE moved SET v = 'more' WHERE id = 4; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (9)",
        )
        .await;
    eventually(Duration::from_secs(30), async || {
        db.ch.try_query("SELECT count() FROM moved_current").await.map(|_there| ())
    })
    .await;
    assert_equal(&db, "t").await;
    assert_settled_equal(&db, &["moved", "t", "other"]).await;
    no_fresh(&db).await;
    assert_eq!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 'moved'").await, filled);
    daemon.wait_ready().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_the_publication_while_it_is_resynced_is_copied_from_its_return_on() {
    // Seen by a look at the catalog, or gone again before that.
    for (label, seen) in [("cross_left", true), ("cross_left_quick", false)] {
        let (db, daemon) = replicated(label).await;
        let session = writer(&db).await;
        let first = begin_resync(&db, &daemon).await;
        run(&session, "INSERT INTO t VALUES (4, 'fed', 4)").await;
        db.pg.execute("ALTER PUBLICATION walhouse DROP TABLE t").await;
        // Of neither target's feed, and not what the first copy would miss.
        db.pg.execute("UPDATE t SET v = 'unseen' WHERE id = 1; DELETE FROM t WHERE id = 2").await;
        if seen {
            wait_for_stop(&db, "not in the publication any more").await;
            no_fresh(&db).await;
        }
        db.pg.execute("ALTER PUBLICATION walhouse ADD TABLE t; INSERT INTO t VALUES (5, 'seen', 5)").await;
        let second = fresh(&db, &first).await;
        run(&session, "COMMIT").await;
        db.pg.execute("UPDATE t SET n = 30 WHERE id = 3").await;
        assert_equal(&db, "t").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        no_fresh(&db).await;
        assert_eq!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await, second);
        drop(daemon);
        db.cleanup().await;
    }
}

/// The only request's state and message, once it is not open any more.
async fn request(db: &TestDb) -> String {
    let sql = "SELECT state, message FROM _requests FINAL WHERE state NOT IN ('asked', 'begun')";
    eventually(Duration::from_secs(20), async || match db.ch.try_query(sql).await? {
        found if found.is_empty() => Err(format!("{:?}", db.ch.try_query("SELECT * FROM _requests FINAL").await)),
        found => Ok(found),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_while_it_is_resynced_leaves_nothing_to_its_successor() {
    for (label, killed) in [("cross_dropped", false), ("cross_dropped_down", true)] {
        let (db, mut daemon) = replicated(label).await;
        let session = writer(&db).await;
        begin_resync(&db, &daemon).await;
        run(&session, "UPDATE t SET v = 'late' WHERE id = 1; INSERT INTO t VALUES (4, 'late', 4)").await;
        if killed {
            daemon.kill9();
        }
        // Of the same shape, so that a row of the old one would fit; its keys are others.
        run(
            &session,
            "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL);
             INSERT INTO t SELECT i, 'new', i FROM generate_series(3, 6) i; COMMIT",
        )
        .await;
        db.pg
            .execute("INSERT INTO t VALUES (7, 'newer', 7); DELETE FROM t WHERE id = 6; INSERT INTO other VALUES (2)")
            .await;
        if killed {
            daemon.start();
        }
        assert_equal(&db, "t").await;
        db.pg.execute("INSERT INTO t VALUES (8, 'newest', 8)").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        no_fresh(&db).await;
        assert_eq!(db.ch.query("SELECT countIf(v IN ('copied', 'late')) FROM t").await, "0", "a row of the old table");
        let told = request(&db).await;
        assert!(told.starts_with("refused\tthe copy was given up"), "{told}");
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_while_it_is_resynced_leaves_its_live_target_alone() {
    for (label, killed) in [("cross_gone", false), ("cross_gone_down", true)] {
        let (db, mut daemon) = replicated(label).await;
        let session = writer(&db).await;
        begin_resync(&db, &daemon).await;
        if killed {
            daemon.kill9();
        }
        run(&session, "DROP TABLE t; COMMIT").await;
        if killed {
            daemon.start();
        }
        wait_for_stop(&db, "it was dropped").await;
        db.pg.execute("INSERT INTO other VALUES (2)").await;
        settled(&db).await;
        assert_equal(&db, "other").await;
        no_fresh(&db).await;
        assert_eq!(db.ch.query("SELECT count() FROM t_current").await, "3", "what is there stays");
        let told = request(&db).await;
        assert!(told.starts_with("refused\tit was dropped"), "{told}");
        drop(daemon);
        db.cleanup().await;
    }
}

/// Runs `walhouse resync public.t` to its end.
pub(super) async fn resync(daemon: &Daemon) -> Exit {
    walhouse(daemon.config(), &["resync", "public.t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alteration_that_clickhouse_refuses_stops_its_table_alone_and_names_the_remedy() {
    let db = TestDb::new("cross_refused").await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t SELECT i, 'copied', i FROM generate_series(1, 3) i",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "[tables.\"public.t\"]\non_drop_column = \"drop\"");
    daemon.wait_ready().await;
    // A column of somebody's own, which needs the one that goes.
    db.ch.query("ALTER TABLE t ADD COLUMN twice Int64 MATERIALIZED ifNull(n, 0) * 2").await;
    db.pg
        .execute(
            "INSERT INTO t VALUES (4, 'before', 4); ALTER TABLE t DROP COLUMN n; INSERT INTO t VALUES (5, 'after')",
        )
        .await;
    let told = "its target can not be altered: ClickHouse: ILLEGAL_COLUMN (code 44). To replicate it from the beginning, \
                run walhouse resync";
    daemon.wait_log(told, 1).await;
    // Its shape calls for a copy, so nobody has to ask; the column by hand stays behind.
    assert_equal(&db, "t").await;
    db.pg.execute("INSERT INTO other VALUES (2); UPDATE t SET v = 'again' WHERE id < 3").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    assert_eq!(daemon.log().matches("a table stops").count(), 1, "other tables go on, and so does this one");
    let done = resync(&daemon).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_somebody_made_by_hand_is_not_taken_for_the_sources() {
    for (label, by_hand, change) in [
        ("cross_hand", "w Nullable(String) DEFAULT 'by hand'", "ADD COLUMN w text DEFAULT 'theirs'"),
        ("cross_hand_type", "w UInt8", "ADD COLUMN w text"),
        ("cross_hand_name", "w String DEFAULT 'by hand'", "RENAME v TO w"),
        ("cross_hand_mark", "w__is_null String DEFAULT 'by hand'", "ADD COLUMN w int[]"),
        ("cross_hand_false", "w__is_null Bool DEFAULT false", "ADD COLUMN w int[]"),
    ] {
        let (db, daemon) = replicated(label).await;
        db.ch.query(&format!("ALTER TABLE t ADD COLUMN {by_hand}")).await;
        db.pg.execute(&format!("ALTER TABLE t {change}")).await;
        assert_equal(&db, "t").await;
        db.pg.execute("INSERT INTO t (id, n) VALUES (4, 4); UPDATE t SET n = 20 WHERE id = 2").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        drop(daemon);
        db.cleanup().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_before_a_fresh_target_is_fed_has_its_values() {
    let (db, daemon) = replicated("cross_fed").await;
    // One of that name goes before another is made, and not before whoever reads it has read it.
    db.ch.query("CREATE TABLE t__resync AS t").await;
    db.ch.query("INSERT INTO t__resync (id) SELECT number FROM numbers(1000)").await;
    let ch = db.ch.clone();
    let read = "SELECT sleepEachRow(0.1) FROM t__resync SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0";
    let reader = tokio::spawn(async move { ch.try_query(read).await });
    here(&db, "sleepEachRow").await;
    db.pg.execute("ALTER TABLE t ALTER v TYPE varchar(20) USING v || '!', ALTER n TYPE int8").await;
    here(&db, "DROP TABLE").await;
    // Its shape was read.
    db.pg.execute("BEGIN; ALTER TABLE t ADD late text; UPDATE t SET late = 'late' WHERE id < 3; COMMIT").await;
    // The stream is past that.
    db.pg.execute("INSERT INTO other VALUES (2)").await;
    assert_settled_equal(&db, &["other"]).await;
    db.ch
        .query("KILL QUERY WHERE current_database = currentDatabase() AND query LIKE 'SELECT sleepEachRow%' SYNC")
        .await;
    _ = reader.await.expect("a reader does not panic");
    daemon.wait_log("the fresh copy is the live one now", 1).await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// Waits until ClickHouse runs a statement of this database with such words.
async fn here(db: &TestDb, words: &str) {
    let sql = format!(
        "SELECT count() FROM system.processes WHERE current_database = currentDatabase() AND query LIKE '%{words}%'
         AND query NOT LIKE '%system.processes%'"
    );
    eventually(Duration::from_secs(30), async || match db.ch.try_query(&sql).await?.as_str() {
        "0" => Err(format!("no {words} runs")),
        _ => Ok(()),
    })
    .await;
}
