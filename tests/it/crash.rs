//! Every process is killed in the middle of a mixed load, and afterwards both sides are equal.
//!
//! Beside each of these tests a witness looks at the checkpoint and at the slot: see `Watch`.

use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, LOAD_TABLES, Load, Postgres, PostgresOptions, TestDb, Watch,
    assert_equal_within, confirmed, eventually, seeded_rng, stored,
};

const SESSIONS: usize = 4;

/// A loaded pair of databases with a daemon between them, past its initial copy.
struct Scene {
    db: TestDb,
    daemon: Daemon,
    load: Load,
    watch: Watch,
    rng: StdRng,
}

impl Scene {
    async fn new(db: TestDb) -> Self {
        let mut rng = seeded_rng();
        Load::prepare(&db, &mut rng).await;
        let mut daemon = Daemon::spawn(&db, "");
        daemon.wait_ready().await;
        assert_eq!(daemon.log().matches("table copied").count(), LOAD_TABLES.len(), "ready before it was");
        let watch = Watch::start(&db);
        let load = Load::start(&db, &mut rng, SESSIONS);
        load.wait_commits(20).await;
        Self { db, daemon, load, watch, rng }
    }

    /// Lets everything run for a random while.
    async fn pass(&mut self, milliseconds: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(milliseconds))).await;
    }

    /// The end of the load; both sides become equal, and nothing was out of order on the way.
    async fn ends_equal(self) -> (TestDb, Daemon) {
        self.load.stop().await;
        all_equal(&self.db).await;
        assert_one_payload(&self.db).await;
        self.watch.finish().await;
        (self.db, self.daemon)
    }
}

async fn all_equal(db: &TestDb) {
    for table in LOAD_TABLES {
        assert_equal_within(db, table, Duration::from_secs(60)).await;
    }
}

/// However often a change was delivered, it is the same row. Columns stored out of line aside: what an update leaves
/// alone is completed from wherever it is found.
async fn assert_one_payload(db: &TestDb) {
    let repeated = "SELECT groupArray(id) FROM (SELECT id FROM item GROUP BY id, _version
        HAVING uniqExact(tuple(name, price, ok, at, _is_deleted)) > 1)";
    assert_eq!(db.ch.query(repeated).await, "[]", "one version of a key has two payloads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_again_and_again_loses_nothing() {
    let mut scene = Scene::new(TestDb::new("kills").await).await;
    let mut streams = 0;
    for round in 0..9 {
        // Every third time while it is still starting.
        if round % 3 != 2 {
            scene.daemon.wait_streams(streams).await;
        }
        scene.pass(0..1000).await;
        scene.daemon.kill9();
        streams = scene.daemon.streams();
        scene.daemon.start();
    }
    let (db, daemon) = scene.ends_equal().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_is_killed_in_the_middle_of_its_inserts() {
    let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(2 << 30), ..Default::default() });
    let mut scene = Scene::new(TestDb::on(Postgres::shared(), clickhouse, "kill_ch").await).await;
    let pid = scene.daemon.pid();
    for _ in 0..2 {
        scene.pass(500..2000).await;
        scene.db.clickhouse.kill9();
        scene.load.wait_commits(30).await;
        scene.db.clickhouse.start();
    }
    scene.pass(500..1500).await;
    let (db, mut daemon) = scene.ends_equal().await;
    daemon.wait_ready().await;
    assert_eq!(daemon.pid(), pid);
    assert!(daemon.log().contains("ClickHouse can not be reached"), "the outage was not told");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_killed_and_recovers_and_the_daemon_comes_back_to_it() {
    let postgres = Postgres::private(PostgresOptions::default());
    let mut scene = Scene::new(TestDb::on(postgres, ClickHouse::shared(), "kill_pg").await).await;
    for down in [0, 4] {
        scene.pass(500..2000).await;
        let (streams, before) = (scene.daemon.streams(), scene.daemon.metric("walhouse_reconnects_total", "").await);
        scene.db.postgres.kill9();
        // A refused connection costs nothing, so only the pauses keep it from trying hundreds of times.
        tokio::time::sleep(Duration::from_secs(down)).await;
        let reconnects = scene.daemon.metric("walhouse_reconnects_total", "").await - before;
        assert!(reconnects <= 20.0, "a storm: {reconnects} reconnects in {down} s");
        scene.db.postgres.start();
        scene.load.wait_commits(30).await;
        scene.daemon.wait_streams(streams).await;
    }
    let (db, mut daemon) = scene.ends_equal().await;
    daemon.wait_ready().await;
    assert!(daemon.metric("walhouse_reconnects_total", "").await >= 2.0);
    assert!(daemon.log().contains("the session ended; going on from the checkpoint"), "the reconnect was not told");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_terminated_again_and_again_loses_nothing() {
    let mut scene = Scene::new(TestDb::new("walsender").await).await;
    let terminate = format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
        scene.db.name
    );
    let mut terminated = 0;
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until || terminated < 3 {
        terminated += scene.db.pg.query(&terminate).await.len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reconnects = scene.daemon.metric("walhouse_reconnects_total", "").await;
    println!("terminated {terminated} times, {reconnects} reconnects");
    assert!(reconnects >= 2.0, "{reconnects} reconnects, {terminated} terminated");
    // It is left alone now, and goes on beside the load.
    scene.daemon.wait_ready().await;
    scene.load.wait_commits(200).await;
    let (db, daemon) = scene.ends_equal().await;
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_middle_of_the_load_ends_in_time_and_frees_the_slot() {
    let mut scene = Scene::new(TestDb::new("sigterm").await).await;
    for _ in 0..3 {
        scene.pass(200..1200).await;
        let status = scene.daemon.sigterm(Duration::from_secs(20)).await;
        assert_eq!(status.code(), Some(0));
        assert_free(&scene.db).await;
        scene.daemon.start();
        scene.daemon.wait_ready().await;
    }
    let (db, mut daemon) = scene.ends_equal().await;
    // Nothing is written any more: what was stored last is what PostgreSQL was told last.
    assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
    assert_free(&db).await;
    let (told, kept) = (confirmed(&db.pg, &db.name).await, stored(&db.ch, &db.name).await);
    assert!(matches!(told, Ok(Some(_))) && told == kept, "{told:?} {kept:?}");
    drop(daemon);
    db.cleanup().await;
}

/// No slot of this database is in use, and there is none but the one.
async fn assert_free(db: &TestDb) {
    let sql = format!("SELECT slot_name, active, temporary FROM pg_replication_slots WHERE database = '{}'", db.name);
    // The server ends the session a moment after it was asked to.
    eventually(Duration::from_secs(2), async || {
        let slots = db.pg.query(&sql).await;
        let free = [Some(db.name.clone()), Some("f".to_owned()), Some("f".to_owned())];
        if slots == [free.to_vec()] { Ok(()) } else { Err(format!("{slots:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_adjacent_transactions_of_one_row() {
    let mut rng = seeded_rng();
    let db = TestDb::new("adjacent").await;
    db.pg.execute("CREATE TABLE tick (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_delay = \"20ms\"\nmax_rows = 3\n");
    daemon.wait_ready().await;
    let mut streams = 0;
    let watch = Watch::start(&db);
    let client = db.pg.connect().await.expect("PostgreSQL takes connections");
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(async move {
        let insert = client.prepare("INSERT INTO tick VALUES ($1)").await.expect("a statement can be prepared");
        let mut id = 0_i64;
        while stopped.try_recv().is_err() {
            client.execute(&insert, &[&id]).await.expect("a row can be inserted");
            id += 1;
        }
        id
    });
    for round in 0..12 {
        daemon.wait_streams(streams).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..600))).await;
        streams = daemon.streams();
        if round % 3 == 2 {
            assert_eq!(daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
        } else {
            daemon.kill9();
        }
        daemon.start();
    }
    stop.send(()).expect("the writer waits for this");
    let written = writer.await.expect("the writer does not panic");
    println!("{written} rows");
    eventually(Duration::from_secs(60), async || {
        let there = db.ch.try_query("SELECT count(), uniqExact(id), max(id) FROM tick FINAL").await?;
        let expected = format!("{written}\t{written}\t{}", written - 1);
        if there == expected { Ok(()) } else { Err(format!("{there}, not {expected}")) }
    })
    .await;
    watch.finish().await;
    drop(daemon);
    db.cleanup().await;
}
