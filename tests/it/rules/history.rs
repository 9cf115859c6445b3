//! Random histories of tables with toasted values: copied while they are written, landed in parts by daemons that are
//! killed, merged and replayed. However it went, both sides end equal.

use std::time::Duration;

use futures_util::future::join_all;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio_postgres::Client;

use super::{run, session, wait_for_status};
use crate::support::{
    Daemon, FrozenStream, Past, TestDb, assert_equal, assert_settled_equal, eventually, seeded_rng, settled,
};

/// Each round has this many new tables, and writes those of the round before once more.
const FRESH: usize = 5;
const ROUNDS: usize = 11;
const PHASES: usize = 5;

/// A table, its only writer, and what it will do.
struct Table {
    name: String,
    /// The key is a toasted text and a number; otherwise a number.
    wide_key: bool,
    session: Client,
    rng: StdRng,
    label: usize,
}

impl Table {
    async fn create(db: &TestDb, name: String, number: usize, rng: &mut StdRng) -> Self {
        let session = session(db).await;
        let wide_key = number == 1;
        let key = if wide_key { "k text, sub int, PRIMARY KEY (k, sub)" } else { "id int PRIMARY KEY" };
        run(&session, &format!("CREATE TABLE {name} ({key}, n int NOT NULL DEFAULT 0, a text, b text)")).await;
        for column in if wide_key { &["a", "b", "k"][..] } else { &["a", "b"] } {
            run(&session, &format!("ALTER TABLE {name} ALTER COLUMN {column} SET STORAGE EXTERNAL")).await;
        }
        if number == 2 {
            run(&session, &format!("ALTER TABLE {name} REPLICA IDENTITY FULL")).await;
        }
        Self { name, wide_key, session, rng: StdRng::seed_from_u64(rng.random()), label: 0 }
    }

    /// The values of a key's columns.
    fn key(&self, key: u32) -> String {
        if self.wide_key { format!("{}, {}", self.text(key), key / 2) } else { key.to_string() }
    }

    fn text(&self, key: u32) -> String {
        format!("repeat('{}', 575)", ["even", "odd "][key as usize % 2])
    }

    fn is(&self, key: u32) -> String {
        let columns = if self.wide_key { "(k, sub)" } else { "(id)" };
        format!("{columns} = ({})", self.key(key))
    }

    /// Gives a row another key; a column that stays the same is left alone, so that a toasted one is not sent.
    fn moved(&self, from: u32, to: u32) -> String {
        match (self.wide_key, from % 2 == to % 2) {
            (false, _) => format!("id = {to}"),
            (true, true) => format!("sub = {}", to / 2),
            (true, false) => format!("k = {}, sub = {}", self.text(to), to / 2),
        }
    }

    fn value(&mut self) -> String {
        self.label += 1;
        match self.rng.random_range(0..10) {
            0 => "NULL".to_owned(),
            1 => format!("'short {}'", self.label),
            _ => format!("repeat('{} {} ', 300)", self.name, self.label),
        }
    }

    fn statement(&mut self) -> String {
        let (x, y, t) = (self.rng.random_range(0..5), self.rng.random_range(0..5), self.name.clone());
        let (a, b) = (self.value(), self.value());
        let (is, key) = (self.is(x), self.key(x));
        match self.rng.random_range(0..100) {
            0..24 => format!("INSERT INTO {t} VALUES ({key}, 0, {a}, {b}) ON CONFLICT DO NOTHING"),
            24..42 => format!("UPDATE {t} SET n = n + 1 WHERE {is}"),
            42..49 => format!("UPDATE {t} SET a = {a} WHERE {is}"),
            49..56 => format!("UPDATE {t} SET b = {b}, n = n + 1 WHERE {is}"),
            56..82 => {
                let free = format!("NOT EXISTS (SELECT FROM {t} WHERE {})", self.is(y));
                format!("UPDATE {t} SET {} WHERE {is} AND {free}", self.moved(x, y))
            }
            82..88 if x != y => format!(
                "UPDATE {t} SET {} WHERE {is}; UPDATE {t} SET {} WHERE {}; UPDATE {t} SET {} WHERE {}",
                self.moved(x, 100 + x % 2),
                self.moved(y, x),
                self.is(y),
                self.moved(100 + x % 2, y),
                self.is(100 + x % 2)
            ),
            88..99 => format!("DELETE FROM {t} WHERE {is}"),
            _ => format!("TRUNCATE {t}"),
        }
    }

    /// A few transactions.
    async fn write(&mut self) {
        for _ in 0..self.rng.random_range(2..6) {
            let statements: Vec<_> = (0..self.rng.random_range(1..5)).map(|_| self.statement()).collect();
            let end = if self.rng.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" };
            run(&self.session, &format!("BEGIN; {}; {end}", statements.join("; "))).await;
        }
    }
}

/// What happens to the stream, the daemon and the targets while the tables are written.
async fn event(
    db: &TestDb,
    daemon: &mut Daemon,
    frozen: &mut Option<FrozenStream>,
    tables: &[Table],
    rng: &mut StdRng,
) {
    match rng.random_range(0..7) {
        0 => {
            crash(db, daemon, frozen).await;
            daemon.start();
        }
        1 => {
            crash(db, daemon, frozen).await;
            merge(db, tables, rng).await;
            daemon.start();
        }
        2 if frozen.is_none() => *frozen = Some(FrozenStream::of(db).await),
        3 => *frozen = None,
        4 if frozen.is_none() => settled(db).await,
        5 => {
            // The stream may stand inside a transaction, and the copy then waits for it.
            let copied = wait_for_status(db, &tables[rng.random_range(0..FRESH)].name, "streaming");
            let _ = tokio::time::timeout(Duration::from_secs(2), copied).await;
        }
        _ => merge(db, tables, rng).await,
    }
}

/// Kills the daemon, and waits until the server has noticed.
async fn crash(db: &TestDb, daemon: &mut Daemon, frozen: &mut Option<FrozenStream>) {
    daemon.kill9();
    *frozen = None;
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", db.name);
    eventually(Duration::from_secs(20), async || match db.pg.value(&active).await.as_str() {
        "f" => Ok(()),
        _ => Err("the slot is still active".to_owned()),
    })
    .await;
}

async fn merge(db: &TestDb, tables: &[Table], rng: &mut StdRng) {
    let table = &tables.choose(rng).expect("there are tables").name;
    // It may not be there yet.
    let _ = db.ch.try_query(&format!("OPTIMIZE TABLE {table} FINAL")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn toasted_values_outlive_kills_merges_and_replays() {
    let mut rng = seeded_rng();
    let db = TestDb::new("history").await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_rows = 12\nmax_delay = \"30ms\"");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    let mut positions = vec![db.pg.value("SELECT pg_current_wal_lsn()").await];
    let mut tables: Vec<Table> = Vec::new();
    for round in 0..ROUNDS {
        tables.truncate(FRESH);
        for number in 0..FRESH {
            tables.insert(number, Table::create(&db, format!("h{round}_{number}"), number, &mut rng).await);
        }
        join_all(tables.iter_mut().map(Table::write)).await;
        // It finds new tables at once when it starts.
        let mut frozen = None;
        crash(&db, &mut daemon, &mut frozen).await;
        daemon.start();
        if rng.random_bool(0.7) {
            frozen = Some(FrozenStream::of(&db).await);
            let known = format!("SELECT count() FROM _tables WHERE table_name = '{}'", tables[0].name);
            eventually(Duration::from_secs(20), async || match db.ch.try_query(&known).await?.as_str() {
                "0" => Err("no new table has been found".to_owned()),
                _ => Ok(()),
            })
            .await;
        }
        for _ in 0..PHASES {
            join_all(tables.iter_mut().map(Table::write)).await;
            event(&db, &mut daemon, &mut frozen, &tables, &mut rng).await;
        }
        drop(frozen);
        assert_all_equal(&db, &tables).await;
        if rng.random_bool(0.5) {
            daemon.sigterm(Duration::from_secs(20)).await;
            merge(&db, &tables, &mut rng).await;
            past.restore(&db, positions.choose(&mut rng).map(String::as_str)).await;
            daemon.start();
            assert_all_equal(&db, &tables).await;
        }
        positions.push(db.pg.value("SELECT pg_current_wal_lsn()").await);
    }
    for number in 0..FRESH {
        // Those of the rounds before stood still, and were replayed now and then.
        assert_equal(&db, &format!("h0_{number}")).await;
    }
    drop(daemon);
    db.cleanup().await;
}

async fn assert_all_equal(db: &TestDb, tables: &[Table]) {
    for table in tables {
        wait_for_status(db, &table.name, "streaming").await;
    }
    let names: Vec<_> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_settled_equal(db, &names).await;
}
