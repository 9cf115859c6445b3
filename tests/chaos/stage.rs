//! What a scenario is played on: both databases, the queues, three lines that can be bad, a load, the daemon, and a witness.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use crate::cost::{self, Cost};
use crate::events::{committed, events};
use crate::load::Load;
use crate::oracle::{Verdict, judge, watch_versions};
use crate::script::{SCHEMA, Script};
use crate::sieve::Sieve;
use crate::support::{
    ClickHouse, ClickHouseOptions, Daemon, Disk, Postgres, PostgresOptions, Sqs, TestDb, eventually, is_root,
};
use crate::wire::{Speech, Wire};
use crate::witness::{Seen, Witness};

const OUTBOX: &str = include_str!("../../migrations/postgres/0002_outbox_event.sql");
const LISTENS: &str = "events that are written into the outbox table are sent from now on";
/// How long the stream may take to its end, on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(180);
/// A heap of several chunks of the initial copy.
const BALLAST: &str = "CREATE TABLE ballast (id int4 PRIMARY KEY, v text, body text) WITH (fillfactor = 10);
    INSERT INTO ballast SELECT i, md5(i::text), repeat('b', 300) FROM generate_series(1, 30000) i";
/// Commits of a run, at least.
const LEAST: u64 = 200;
/// The share of runs with workers, where a scenario is not about them.
const WITH_WORKERS: f64 = 0.15;
/// What a ClickHouse may use, and what a small one has.
const MEMORY: u64 = 2 << 30;
const SMALL_MEMORY: u64 = 256 << 20;
const DISK: u64 = 4 << 30;
const SMALL_DISK: u64 = 512 << 20;
/// The daemon's own.
const OWN_DISK: u64 = 8 << 20;
/// Bytes a second, so that a fault finds it in the middle.
const COPY_PACE: u64 = 4_000_000;

/// The servers of one job, which its runs use one after the other.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) clickhouse: Arc<ClickHouse>,
    pub(crate) sqs: Arc<Sqs>,
    /// Another cluster, once one is needed.
    other: Arc<OnceLock<Arc<Postgres>>>,
}

impl Servers {
    pub(crate) fn start() -> Self {
        // In memory where that can be had: what is killed here is a process, and files outlive it there too.
        let disk = is_root().then_some(DISK);
        let clickhouse = ClickHouse::private(ClickHouseOptions { memory: Some(MEMORY), disk, ..Default::default() });
        Self { postgres: Self::postgres(), clickhouse, sqs: Sqs::private(), other: Arc::default() }
    }

    fn postgres() -> Arc<Postgres> {
        let settings = [
            ("max_wal_senders", "20"),
            ("shared_buffers", "64MB"),
            // The machine does not crash.
            ("full_page_writes", "off"),
            ("autovacuum", "off"),
            ("jit", "off"),
        ];
        let settings = settings.map(|(name, value)| (name, value.to_owned())).to_vec();
        Postgres::private(PostgresOptions { settings, ..Default::default() })
    }

    /// Those that a scenario is played on: with a ClickHouse of its own, if that has to be a small one.
    pub(crate) fn of(&self, opening: Opening) -> Self {
        let clickhouse = match opening.small {
            Small::No => return self.clone(),
            Small::Disk => ClickHouseOptions { memory: Some(MEMORY), disk: Some(SMALL_DISK), ..Default::default() },
            Small::Memory => ClickHouseOptions { memory: Some(SMALL_MEMORY), ..Default::default() },
        };
        Self { clickhouse: ClickHouse::private(clickhouse), ..self.clone() }
    }

    /// Another cluster.
    pub(crate) fn other(&self) -> Arc<Postgres> {
        tokio::task::block_in_place(|| self.other.get_or_init(Self::postgres).clone())
    }

    /// What they have taken so far, with the threads of this job.
    pub(crate) fn cost(&self) -> Cost {
        Cost {
            daemon: 0.0,
            postgres: self.postgres.processor_seconds(),
            clickhouse: self.clickhouse.processor_seconds(),
            sqs: self.sqs.processor_seconds(),
            harness: cost::of_this_job(),
        }
    }
}

/// What there is when the first fault strikes.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    /// The daemon has just been started, on tables of several chunks, beside the load. Otherwise the copies are done.
    pub(crate) copying: bool,
    /// The load does little but change the shape of a table in one of its sessions.
    pub(crate) storm: bool,
    /// There is a ClickHouse of its own, with little of something.
    pub(crate) small: Small,
    /// ClickHouse dies, or lacks something.
    pub(crate) frail: bool,
    /// All that the daemon has to do with files is on a small disk: its working directory, its log, its objects.
    pub(crate) own_disk: bool,
    /// Batches of messages may lose one of them.
    pub(crate) sieve: bool,
    /// walhouse's own workers take the events from the queues; otherwise they do in some of the runs, and in the others nobody
    /// does: a message that was in hand at a kill comes back after half a minute only.
    pub(crate) workers: bool,
    /// SQL that is run before anything else.
    pub(crate) prepare: &'static str,
    /// Sections of the configuration that go over the usual ones.
    pub(crate) config: &'static str,
}

/// What a ClickHouse has little of.
#[derive(Clone, Copy)]
pub(crate) enum Small {
    No,
    Disk,
    Memory,
}

pub(crate) struct Stage {
    pub(crate) db: TestDb,
    pub(crate) servers: Servers,
    pub(crate) rng: StdRng,
    pub(crate) postgres: Wire,
    pub(crate) clickhouse: Wire,
    pub(crate) queues: Wire,
    /// Beyond that line.
    pub(crate) sieve: Option<Sieve>,
    /// How many faults were injected, and which.
    pub(crate) journal: Vec<String>,
    /// A part of the faults is enough.
    short: bool,
    began: Instant,
    before: Cost,
    config: String,
    opening: Opening,
    workers: bool,
    /// Events that were committed before walhouse listened.
    early: Vec<String>,
    daemon: Option<Daemon>,
    load: Option<Load>,
    witness: Option<Witness>,
    /// By the witnesses before this one.
    seen: Vec<Seen>,
    /// Goes after what is on it.
    _own_disk: Option<Disk>,
}

impl Stage {
    /// Databases with nothing in them, and lines in good weather.
    pub(crate) async fn new(servers: &Servers, row: u32, seed: u64, opening: Opening, short: bool) -> Self {
        let (began, before) = (Instant::now(), servers.cost());
        let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(u64::from(row)));
        let db = TestDb::on(servers.postgres.clone(), servers.clickhouse.clone(), &format!("chaos{row}")).await;
        let own_disk = opening.own_disk.then(|| Disk::at(&db.directory, OWN_DISK));
        let postgres = Wire::to(db.postgres.port(), Speech::Postgres).await;
        let clickhouse = Wire::to(db.clickhouse.port(), Speech::Http).await;
        let sqs = servers.sqs.port();
        let sieve = if opening.sieve { Some(Sieve::to(sqs).await) } else { None };
        let queues = Wire::to(sieve.as_ref().map_or(sqs, Sieve::port), Speech::Http).await;
        let config = format!(
            "[source]\nurl = \"postgres://postgres@127.0.0.1:{}/{}\"\n[clickhouse]\nurl = \"http://127.0.0.1:{}\"\n{}{}",
            postgres.port(),
            db.name,
            clickhouse.port(),
            Sqs::handled(queues.port(), &prefix(&db)),
            pace(&mut rng),
        );
        Self {
            db,
            servers: servers.clone(),
            rng,
            postgres,
            clickhouse,
            queues,
            sieve,
            journal: Vec::new(),
            short,
            began,
            before,
            config,
            opening,
            workers: false,
            early: Vec::new(),
            daemon: None,
            load: None,
            witness: None,
            seen: Vec::new(),
            _own_disk: own_disk,
        }
    }

    /// Starts what is to be there when the first fault strikes.
    pub(crate) async fn open(&mut self) {
        let opening = self.opening;
        self.workers = self.rng.random_bool(WITH_WORKERS) || opening.workers;
        if !self.workers {
            self.config += "[workers]\nenabled = false\n";
        }
        let rows = Script::new(self.rng.random(), 0).first_rows();
        for sql in [opening.prepare, SCHEMA, OUTBOX, &rows] {
            self.db.pg.execute(sql).await;
        }
        let config = self.config();
        self.note(format!("{} with {config:?}", self.db.name));
        if opening.copying {
            self.db.pg.execute(BALLAST).await;
            self.postgres.throttle(COPY_PACE);
            self.write();
            self.daemon = Some(Daemon::spawn(&self.db, &config));
        } else {
            self.daemon = Some(Daemon::spawn(&self.db, &config));
            self.stream().await;
            self.write();
        }
        self.load().wait_commits(20).await;
        self.note_cost("the first fault may strike");
    }

    /// From here on the copies are done, and there is a witness.
    async fn stream(&mut self) {
        self.daemon().wait_ready().await;
        self.daemon().wait_log(LISTENS, 1).await;
        watch_versions(&self.db, self.opening.frail).await;
        self.witness = Some(Witness::start(&self.db));
    }

    /// Ends the load, waits until all is quiet, and looks at everything.
    pub(crate) async fn close(&mut self) -> Verdict {
        self.mend();
        if self.witness.is_none() {
            // Ready is who has caught up, which a slow machine may not as long as there is a load.
            self.rest().await;
            self.stream().await;
            self.early = committed(&self.db).await;
            self.write();
            self.load().wait_commits(50).await;
        }
        // A scenario may have ended it.
        if self.load.is_none() {
            self.write();
        }
        let least = if self.short { LEAST / 4 } else { LEAST };
        self.load().wait_for(least).await;
        self.rest().await;
        let witness = self.witness.as_mut().expect("there is a witness");
        witness.see(10, 3).await;
        witness.be_quiet().await;
        self.settle().await;
        let tables: &[&str] = if self.opening.copying { &["ballast"] } else { &[] };
        self.note_cost("all is acknowledged");
        let mut verdict = judge(&self.db, tables).await;
        self.note_cost("all is compared");
        // Nothing moves any more; a message that was in hand at a kill may come back late.
        self.seen.push(self.witness.take().expect("there is a witness").finish().await);
        events(&self.db, &self.servers.sqs, &self.prefix(), &self.early, self.workers, &mut verdict).await;
        self.note_cost("all events are compared");
        let (mut looks, mut checkpoints) = (0, 0);
        for seen in std::mem::take(&mut self.seen) {
            verdict.add(&seen);
            (looks, checkpoints) = (looks + seen.samples, checkpoints + seen.checkpoints);
        }
        self.note(format!("{looks} looks, {checkpoints} checkpoints"));
        verdict
    }

    /// The load begins, with a script of its own.
    pub(crate) fn write(&mut self) {
        self.load = Some(Load::start(&self.db.pg, &mut self.rng, self.opening.storm));
    }

    /// What was seen counts, and nobody looks any more until the end: what is stored is about to be thrown away.
    pub(crate) async fn look_away(&mut self) {
        let mut witness = self.witness.take().expect("there is a witness");
        witness.be_quiet().await;
        self.seen.push(witness.finish().await);
    }

    /// Ends the load.
    pub(crate) async fn rest(&mut self) {
        if let Some(load) = self.load.take() {
            let commits = load.stop().await;
            self.note_cost(&format!("the load has ended after {commits} commits"));
        }
    }

    /// Waits until everything that was committed is acknowledged.
    pub(crate) async fn settle(&mut self) {
        let position = self.db.pg.value("SELECT pg_current_wal_lsn()").await;
        let sql = format!(
            "SELECT confirmed_flush_lsn >= '{position}', confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.db.name
        );
        let (db, daemon) = (&self.db, self.daemon.as_mut().expect("there is a daemon"));
        eventually(PATIENCE, async || {
            assert_eq!(daemon.ended_by_itself(), None, "walhouse has ended by itself");
            match db.pg.try_query(&sql).await?.pop() {
                Some(row) if row[0].as_deref() == Some("t") => Ok(()),
                row => Err(format!("the slot stands at {row:?}, and not at {position}")),
            }
        })
        .await;
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("there is a daemon")
    }

    pub(crate) fn load(&self) -> &Load {
        self.load.as_ref().expect("there is a load")
    }

    /// The configuration of the daemon, for another one.
    pub(crate) fn config(&self) -> String {
        format!("{}{}", self.config, self.opening.config)
    }

    /// So many rounds, or fewer where a part is enough.
    pub(crate) fn rounds(&self, full: u32) -> u32 {
        if self.short { full.div_ceil(3) } else { full }
    }

    /// What the names of its queues begin with.
    pub(crate) fn prefix(&self) -> String {
        prefix(&self.db)
    }

    /// A fault strikes now.
    pub(crate) fn inject(&mut self, what: impl Into<String>) {
        self.note(format!("FAULT {}", what.into()));
    }

    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.journal.push(format!("{:8.3} s  {}", self.began.elapsed().as_secs_f64(), what.into()));
    }

    pub(crate) fn faults(&self) -> u32 {
        self.journal.iter().filter(|line| line.contains(" FAULT ")).count() as u32
    }

    /// Lets everything run for a random while, in milliseconds.
    pub(crate) async fn pass(&mut self, milliseconds: Range<u64>) {
        let while_ = self.rng.random_range(milliseconds);
        sleep(Duration::from_millis(while_)).await;
    }

    /// Lets the load commit a random number of transactions.
    pub(crate) async fn work(&mut self, commits: Range<u64>) {
        let more = self.rng.random_range(commits);
        self.load().wait_commits(more).await;
    }

    /// All lines are good again.
    pub(crate) fn mend(&self) {
        for wire in [&self.postgres, &self.clickhouse, &self.queues] {
            wire.mend();
        }
    }

    /// One of the three lines, by chance, and what it leads to.
    pub(crate) fn any_wire(&mut self) -> (&Wire, &'static str) {
        match self.rng.random_range(0..3) {
            0 => (&self.postgres, "PostgreSQL"),
            1 => (&self.clickhouse, "ClickHouse"),
            _ => (&self.queues, "SQS"),
        }
    }

    /// What it has taken so far.
    pub(crate) fn cost(&self) -> Cost {
        let daemon = self.daemon.as_ref().map_or(0.0, Daemon::processor_seconds);
        Cost { daemon, ..self.servers.cost() - self.before }
    }

    fn note_cost(&mut self, what: &str) {
        let cost = self.cost();
        self.note(format!("{what}; so far {cost}"));
    }

    /// Copies whatever a person would look at, for a run that has failed.
    pub(crate) fn keep(&self, directory: &Path) -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(&self.db.directory)?.flatten() {
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), directory.join(entry.file_name()))?;
            }
        }
        for (name, server) in
            [("postgres", self.db.postgres.directory()), ("clickhouse", self.db.clickhouse.directory())]
        {
            // A server that is quiet has none.
            _ = fs::copy(server.with_extension("log"), directory.join(format!("{name}.log")));
        }
        Ok(())
    }
}

fn prefix(db: &TestDb) -> String {
    format!("{}-", db.name)
}

/// Batches of another size in each run, seldom the smallest, which cost ClickHouse most, and one of the two ways to read the slot: it is the same to the outcome.
fn pace(rng: &mut StdRng) -> String {
    let delay = [20, 100, 200, 200, 400, 400, 800, 800][rng.random_range(0..8)];
    let rows = [50, 500, 500_000][rng.random_range(0..3)];
    let (window, lag) = [("32MiB", "64MiB"), ("1MiB", "2MiB")][rng.random_range(0..2)];
    format!(
        "[batch]\nmax_delay = \"{delay}ms\"\nmax_rows = {rows}\n[source]\ncatch_up_window = \"{window}\"\ncatch_up_lag = \"{lag}\"\n"
    )
}
