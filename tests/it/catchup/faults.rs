//! Whatever ends while a backlog is read: both sides are equal afterwards, and no slot is left.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{alone, is_alone};
use crate::support::{
    ClickHouse, Daemon, LOAD_TABLES, Load, Postgres, PostgresOptions, TestDb, Watch, assert_equal_within, eventually,
    seeded_rng, settled,
};

/// Windows that are not too small for the distance to the oldest transaction of the load.
const CONFIG: &str = "[source]\ncatch_up_sessions = 2\ncatch_up_window = \"2MiB\"\ncatch_up_lag = \"2MiB\"\n";

/// A mixed load, and far more beside it than is streamed.
struct Scene {
    db: TestDb,
    daemon: Daemon,
    load: Load,
    watch: Watch,
    rng: StdRng,
    written: u32,
}

impl Scene {
    async fn new(db: TestDb) -> Self {
        let mut rng = seeded_rng();
        Load::prepare(&db, &mut rng).await;
        db.pg.execute("CREATE TABLE bulk (id int8 PRIMARY KEY, v text, n int)").await;
        let mut daemon = Daemon::spawn(&db, CONFIG);
        daemon.wait_ready().await;
        let watch = Watch::start(&db);
        let load = Load::start(&db, &mut rng, 3);
        load.wait_commits(20).await;
        Self { db, daemon, load, watch, rng, written: 0 }
    }

    /// Writes several megabytes in transactions of all sizes.
    async fn fall_behind(&mut self) {
        for _ in 0..12 {
            let (from, count) = (self.written, self.rng.random_range(1..3000));
            self.written += count;
            let upto = self.written - 1;
            self.db
                .pg
                .execute(&format!(
                    "INSERT INTO bulk SELECT i, repeat('b', 100), 0 FROM generate_series({from}, {upto}) i"
                ))
                .await;
            if self.rng.random_bool(0.5) {
                // Notes down what runs: decoding can begin here.
                self.db.pg.execute("CHECKPOINT").await;
            }
            self.db.pg.execute(&format!("UPDATE bulk SET n = n + 1 WHERE id % 50 = {}", from % 50)).await;
        }
    }

    async fn pass(&mut self, milliseconds: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(milliseconds))).await;
    }

    fn caught_up(&self) -> usize {
        self.daemon.log().matches("INFO catching up slot=").count()
    }

    /// Starts the daemon, and waits until it catches up. Where the server has noted down for too long no place at which
    /// decoding can begin, as after crashes, it says that it streams instead.
    async fn start(&mut self) {
        let said = |daemon: &Daemon| {
            let log = daemon.log();
            log.matches("INFO catching up slot=").count() + log.matches("decoding has to begin").count()
        };
        let before = said(&self.daemon);
        self.daemon.start();
        eventually(
            Duration::from_secs(60),
            async || {
                if said(&self.daemon) > before { Ok(()) } else { Err(self.daemon.log()) }
            },
        )
        .await;
    }

    async fn ends_equal(self) {
        self.load.stop().await;
        settled(&self.db).await;
        for table in LOAD_TABLES.into_iter().chain(["bulk"]) {
            assert_equal_within(&self.db, table, Duration::from_secs(30)).await;
        }
        self.watch.finish().await;
        eventually(Duration::from_secs(20), async || {
            if is_alone(&self.db).await { Ok(()) } else { Err("there are copies of the slot".to_owned()) }
        })
        .await;
        drop(self.daemon);
        self.db.cleanup().await;
    }
}

async fn killed(db: TestDb) {
    let mut scene = Scene::new(db).await;
    for round in 0..8 {
        scene.daemon.kill9();
        scene.fall_behind().await;
        if round % 2 == 0 {
            scene.start().await;
        } else {
            scene.daemon.start();
        }
        // In a window, between durable and acknowledged, at the change to the stream, or before all of it.
        scene.pass(0..2500).await;
    }
    assert!(scene.caught_up() >= 2);
    scene.ends_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_catches_up_loses_nothing() {
    killed(alone("cu_kill").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_it_catches_up_loses_nothing_on_postgres_18() {
    let postgres = Postgres::private(PostgresOptions { version: "18", ..Default::default() });
    killed(TestDb::on(postgres, ClickHouse::shared(), "cu_kill_18").await).await;
}

async fn server_killed(version: &'static str) {
    let postgres = Postgres::private(PostgresOptions { version, ..Default::default() });
    let mut scene = Scene::new(TestDb::on(postgres, ClickHouse::shared(), "cu_server").await).await;
    for _ in 0..4 {
        scene.daemon.kill9();
        scene.fall_behind().await;
        scene.start().await;
        scene.pass(0..1500).await;
        scene.db.postgres.kill9();
        scene.pass(0..500).await;
        scene.db.postgres.start();
        scene.load.wait_commits(20).await;
    }
    assert!(scene.caught_up() >= 2);
    scene.ends_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_killed_while_it_decodes_windows() {
    server_killed("15").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_is_killed_while_it_decodes_windows() {
    server_killed("18").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_are_cancelled_or_ended_are_streamed() {
    let mut scene = Scene::new(alone("cu_cancel").await).await;
    let mut hit = 0;
    for round in 0..8 {
        scene.daemon.kill9();
        scene.fall_behind().await;
        scene.start().await;
        scene.pass(0..600).await;
        let how = if round % 2 == 0 { "pg_cancel_backend" } else { "pg_terminate_backend" };
        let sql = format!(
            "SELECT {how}(pid) FROM pg_stat_activity WHERE application_name = 'walhouse catch-up' AND state = 'active'
            AND datname = current_database()"
        );
        hit += scene.db.pg.query(&sql).await.len();
        scene.pass(200..1000).await;
    }
    println!("{hit} statements were cancelled");
    assert!(hit > 0);
    let reasons = scene.daemon.log().matches("WARN streaming, not catching up").count();
    assert!(reasons > 0, "nobody noticed");
    scene.ends_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_it_catches_up_leaves_no_copy_of_the_slot_and_acknowledges_what_is_stored() {
    let mut scene = Scene::new(alone("cu_term").await).await;
    for _ in 0..4 {
        scene.daemon.kill9();
        scene.fall_behind().await;
        scene.start().await;
        scene.pass(0..800).await;
        assert_eq!(scene.daemon.sigterm(Duration::from_secs(20)).await.code(), Some(0));
        assert!(is_alone(&scene.db).await);
        let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", scene.db.name);
        assert_eq!(scene.db.pg.value(&active).await, "f");
        let told = crate::support::confirmed(&scene.db.pg, &scene.db.name).await;
        let kept = crate::support::stored(&scene.db.ch, &scene.db.name).await;
        assert!(matches!(told, Ok(Some(_))) && told == kept, "{told:?} {kept:?}");
        scene.daemon.start();
    }
    scene.ends_equal().await;
}
