//! Copies that were asked for and are cut short: by kills, by answers that are lost, by rows that are refused.

use std::time::Duration;

use super::crossing::{begin_resync, no_fresh, run, writer};
use super::{copies, replicated};
use crate::support::{
    Daemon, FrozenStream, Past, Proxy, TestDb, assert_equal, assert_settled_equal, eventually, settled, stopped,
    walhouse,
};

/// Harm to `t` in ClickHouse that no stream would mend: only a copy takes it away.
async fn harm(db: &TestDb) {
    db.ch.query("INSERT INTO t (id, v, n, _version) VALUES (40000, 'not there', 1, 1)").await;
}

/// Waits until the fresh target of `t` is `status` in what is stored.
async fn wait_for_fresh(db: &TestDb, status: &str) {
    let sql = "SELECT fresh FROM _tables FINAL WHERE table_name = 't'";
    eventually(Duration::from_secs(20), async || match db.ch.try_query(sql).await? {
        fresh if fresh.contains(&format!("\"{status}\"")) => Ok(()),
        fresh => Err(format!("the fresh target is not {status}: {fresh}")),
    })
    .await;
}

/// Waits until the only request is done.
async fn wait_for_done(db: &TestDb) {
    let sql = "SELECT groupArray(state) FROM _requests FINAL";
    eventually(Duration::from_secs(30), async || match db.ch.try_query(sql).await?.as_str() {
        "['done']" => Ok(()),
        found => Err(found.to_owned()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_is_killed_while_it_fills_goes_on_where_it_was() {
    let (db, mut daemon) = replicated("int_filling").await;
    harm(&db).await;
    let session = writer(&db).await;
    let filled = begin_resync(&db, &daemon).await;
    run(&session, "INSERT INTO t VALUES (4, 'while it fills', 4)").await;
    daemon.kill9();
    db.pg.execute("UPDATE t SET v = 'while it is down' WHERE id = 1; DELETE FROM t WHERE id = 2").await;
    daemon.start();
    run(&session, "COMMIT").await;
    wait_for_done(&db).await;
    assert_settled_equal(&db, &["t", "other"]).await;
    no_fresh(&db).await;
    assert_eq!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await, filled);
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_is_killed_between_fill_and_swap_ends_with_the_swap() {
    let (db, mut daemon) = replicated("int_between").await;
    harm(&db).await;
    let past = Past::begin(&db).await;
    let session = writer(&db).await;
    let filled = begin_resync(&db, &daemon).await;
    // The stream does not come to where the copy has read, and so not to the swap.
    let frozen = FrozenStream::of(&db).await;
    run(&session, "INSERT INTO t VALUES (4, 'streamed', 4); DELETE FROM t WHERE id = 2; COMMIT").await;
    wait_for_fresh(&db, "swapping").await;
    assert_eq!(db.ch.query("SELECT count() FROM t_current WHERE id = 40000").await, "1", "it was swapped already");
    daemon.kill9();
    drop(frozen);
    db.pg.execute("UPDATE t SET v = 'while it is down' WHERE id = 1").await;
    daemon.start();
    wait_for_done(&db).await;
    assert_settled_equal(&db, &["t", "other"]).await;
    no_fresh(&db).await;
    assert_eq!(db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await, filled);
    assert_eq!(daemon.sigterm(super::STOP).await.code(), Some(0));
    past.restore(&db, None).await;
    daemon.start();
    daemon.wait_ready().await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

/// The usual tables, and a daemon whose line to ClickHouse can be cut.
async fn proxied(label: &str) -> (TestDb, Daemon, Proxy) {
    let db = TestDb::new(label).await;
    let proxy = Proxy::to(db.clickhouse.port()).await;
    db.pg
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL); CREATE TABLE other (id int PRIMARY KEY);
             INSERT INTO t SELECT i, 'copied', i FROM generate_series(1, 3) i; INSERT INTO other VALUES (1)",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, &format!("[clickhouse]\nurl = \"http://127.0.0.1:{}\"", proxy.port()));
    daemon.wait_ready().await;
    (db, daemon, proxy)
}

/// Has the answer to the first statement with `text` in it lost during a resync, and the daemon killed there if so wished.
async fn cut(label: &str, text: &str, killed: bool) {
    let (db, mut daemon, proxy) = proxied(label).await;
    harm(&db).await;
    let first = db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await;
    let asked = walhouse(daemon.config(), &["resync", "public.t", "--no-wait"]).await;
    assert_eq!(asked.code, Some(0), "{asked:?}");
    proxy.cut_after(text);
    proxy.is_cut().await;
    if killed {
        daemon.kill9();
    }
    db.pg.execute("UPDATE t SET v = 'while it is cut off' WHERE id = 1; DELETE FROM t WHERE id = 2").await;
    proxy.mend();
    if killed {
        daemon.start();
    }
    wait_for_done(&db).await;
    db.pg.execute("INSERT INTO t VALUES (4, 'after', 4)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    no_fresh(&db).await;
    let gone = format!("SELECT count() FROM system.tables WHERE database = currentDatabase() AND uuid = '{first}'");
    assert_eq!(db.ch.query(&gone).await, "0", "the target that was replaced is there still");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_whose_answer_is_lost_is_not_done_twice() {
    for (label, killed) in [("int_swap_lost", false), ("int_swap_killed", true)] {
        cut(label, "EXCHANGE TABLES", killed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_answer_is_lost_is_answered_once_more() {
    for (label, killed) in [("int_request_lost", false), ("int_request_killed", true)] {
        cut(label, "INSERT INTO _requests", killed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_target_whose_creation_has_no_answer_is_made_anew() {
    for (label, killed) in [("int_create_lost", false), ("int_create_killed", true)] {
        cut(label, "CREATE TABLE IF NOT EXISTS `t__resync`", killed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alteration_whose_answer_is_lost_is_made_once() {
    let cases = [
        ("ADD COLUMN", "ALTER TABLE t ADD COLUMN w int DEFAULT 9, ADD COLUMN a int[]", "(4, 'new', 4, 5, '{6}')"),
        ("RENAME COLUMN", "ALTER TABLE t RENAME v TO w", "(4, 'new', 4)"),
        ("MODIFY COLUMN", "ALTER TABLE t ALTER n DROP NOT NULL", "(4, 'new', NULL)"),
        ("REPLACE VIEW", "ALTER TABLE t DROP COLUMN n", "(4, 'new')"),
    ];
    for (killed, (text, change, row)) in [false, true].into_iter().flat_map(|killed| cases.map(|case| (killed, case))) {
        println!("{change}, killed: {killed}");
        let (db, mut daemon, proxy) = proxied("int_alter").await;
        proxy.cut_after(text);
        db.pg.execute(&format!("INSERT INTO t VALUES (5, 'before', 5); {change}; INSERT INTO t VALUES {row}")).await;
        proxy.is_cut().await;
        if killed {
            daemon.kill9();
        }
        proxy.mend();
        if killed {
            daemon.start();
        }
        db.pg.execute("DELETE FROM t WHERE id = 1").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        assert_eq!(copies(&daemon).await, 0.0);
        drop(daemon);
        db.cleanup().await;
    }
}

/// A constraint on a target, which ClickHouse refuses rows by.
async fn constrain(db: &TestDb, target: &str) {
    db.ch.query(&format!("ALTER TABLE {target} ADD CONSTRAINT small CHECK n < 1000")).await;
}

/// Transactions that come in one insert, right before the swap of a resync, into a fresh target that refuses rows with a
/// large n.
async fn refused_before_the_swap(label: &str, transactions: &[&str]) -> (TestDb, Daemon) {
    let (db, daemon) = replicated(label).await;
    harm(&db).await;
    let session = writer(&db).await;
    begin_resync(&db, &daemon).await;
    constrain(&db, "t__resync").await;
    // The copy reads to a point that the stream reaches with these rows, and the swap waits for that.
    let frozen = FrozenStream::of(&db).await;
    for transaction in transactions {
        db.pg.execute(transaction).await;
    }
    run(&session, "COMMIT").await;
    wait_for_fresh(&db, "swapping").await;
    drop(frozen);
    (db, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_refused_right_before_a_swap_are_found_and_the_others_land() {
    let rows = "INSERT INTO t SELECT i, 'streamed', CASE WHEN i % 50 = 0 THEN 1000 + i ELSE i END FROM generate_series(10, 200) i";
    let (db, daemon) = refused_before_the_swap("int_refused", &[rows]).await;
    no_fresh(&db).await;
    settled(&db).await;
    assert_eq!(stopped(&db).await.as_deref(), Ok(""));
    let lost = "SELECT operation, arraySort(groupArray(toInt32(JSONExtractString(key, 'id')))) FROM _dead_letters FINAL
                GROUP BY operation ORDER BY operation";
    assert_eq!(db.ch.query(lost).await, "copy\t[50,100,150,200]\nupsert\t[50,100,150,200]");
    assert_eq!(db.ch.query("SELECT count() FROM t FINAL WHERE _is_deleted = 0").await, "190");
    db.pg.execute("UPDATE t SET n = 1 WHERE n >= 1000; INSERT INTO other VALUES (2)").await;
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_stops_right_before_a_swap_is_swapped_and_stopped_until_it_is_resynced() {
    // What the copy reads is good already; what was streamed before is not.
    let rows = "INSERT INTO t SELECT i, 'streamed', 1000 + i FROM generate_series(10, 200) i";
    let (db, mut daemon) = refused_before_the_swap("int_refused_all", &[rows, "UPDATE t SET n = 1"]).await;
    eventually(Duration::from_secs(20), async || match stopped(&db).await? {
        reason if reason.starts_with("t\tClickHouse refuses too many of its rows") => Ok(()),
        reason => Err(reason),
    })
    .await;
    no_fresh(&db).await;
    db.pg.execute("INSERT INTO other VALUES (2)").await;
    settled(&db).await;
    assert_equal(&db, "other").await;
    daemon.kill9();
    daemon.start();
    daemon.wait_ready().await;
    assert!(stopped(&db).await.unwrap().contains("run walhouse resync"));
    let done = walhouse(daemon.config(), &["resync", "public.t"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_settled_equal(&db, &["t", "other"]).await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_target_that_refuses_its_rows_does_not_keep_the_fresh_one_from_its_place() {
    let (db, daemon) = replicated("int_live_refused").await;
    let session = writer(&db).await;
    let filled = begin_resync(&db, &daemon).await;
    constrain(&db, "t").await;
    run(&session, "INSERT INTO t SELECT i, 'streamed', 1000 + i FROM generate_series(10, 200) i").await;
    db.pg.execute("INSERT INTO t VALUES (5, 'now', 5000)").await;
    run(&session, "COMMIT").await;
    assert_settled_equal(&db, &["other"]).await;
    no_fresh(&db).await;
    assert_settled_equal(&db, &["t", "other"]).await;
    assert_eq!(live(&db).await, filled);
    drop(daemon);
    db.cleanup().await;
}

async fn live(db: &TestDb) -> String {
    db.ch.query("SELECT uuid FROM _tables FINAL WHERE table_name = 't'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_shape_changes_while_it_is_resynced_has_the_new_one() {
    let given_up = "refused\tthe copy was given up";
    for (label, change, outcome) in [
        ("int_add", "ALTER TABLE t ADD COLUMN w int DEFAULT 9", "done"),
        ("int_drop", "ALTER TABLE t DROP COLUMN n", given_up),
        ("int_type", "ALTER TABLE t ALTER n TYPE int8 USING n * 10", given_up),
        (
            "int_key",
            "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (n)",
            "refused\tits key is another now",
        ),
    ] {
        let (db, daemon) = replicated(label).await;
        harm(&db).await;
        let session = writer(&db).await;
        begin_resync(&db, &daemon).await;
        run(&session, "INSERT INTO t VALUES (4, 'before', 4)").await;
        run(&session, &format!("{change}; UPDATE t SET v = 'after' WHERE id = 1; COMMIT")).await;
        // Of what a copy can not follow, it is given up, and whoever asked for it is told.
        let ended = "SELECT toString(state), message FROM _requests FINAL WHERE state IN ('done', 'refused')";
        let told = eventually(Duration::from_secs(30), async || match db.ch.try_query(ended).await? {
            found if found.is_empty() => Err("the request is open".to_owned()),
            found => Ok(found),
        })
        .await;
        assert!(told.starts_with(outcome), "{label}: {told}");
        if told.contains("walhouse resync") || told.contains("Ask again") {
            let done = walhouse(daemon.config(), &["resync", "public.t"]).await;
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        assert_equal(&db, "t").await;
        db.pg.execute("UPDATE t SET v = 'later' WHERE id = 3").await;
        assert_settled_equal(&db, &["t", "other"]).await;
        no_fresh(&db).await;
        drop(daemon);
        db.cleanup().await;
    }
}
