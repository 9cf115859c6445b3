//! The version rule, against real concurrent sessions: whatever order the rows arrive in, and however often, what
//! PostgreSQL ends with is what ClickHouse ends with.
//!
//! One driver gives each session its next statement and waits until that has ended or waits for a lock, so a seed
//! repeats a run, but for who loses a deadlock.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::{Daemon, Past, Pg, TestDb, assert_settled_equal, seeded_rng};

const SESSIONS: usize = 5;
/// Histories, one after the other, and the statements of each. They are short, because a later change of a key hides
/// what went wrong with an earlier one.
const HISTORIES: usize = 30;
const STEPS: usize = 100;
const TABLES: [&str; 2] = ["a", "b"];

/// Where a session stands in its transaction.
#[derive(Clone, Copy, PartialEq)]
enum Block {
    None,
    Open,
    Failed,
}

struct Session {
    client: Arc<Client>,
    pid: i32,
    block: Block,
    savepoint: bool,
    /// The statement that has not ended, and where the session stands if it succeeds.
    running: Option<(JoinHandle<Result<(), tokio_postgres::Error>>, Block)>,
}

impl Session {
    async fn new(pg: &Pg) -> Self {
        let client = pg.connect().await.expect("PostgreSQL takes one more session");
        let setup = "SET deadlock_timeout = '30ms'; SET lock_timeout = '5s'";
        client.batch_execute(setup).await.expect("a session can be set up");
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a session has a pid").get(0);
        Self { client: Arc::new(client), pid, block: Block::None, savepoint: false, running: None }
    }

    fn begin(&mut self, sql: String, then: Block) {
        let client = self.client.clone();
        self.running = Some((tokio::spawn(async move { client.batch_execute(&sql).await }), then));
    }

    /// Gives the session something to do.
    fn step(&mut self, rng: &mut StdRng, label: usize) {
        let dice = rng.random_range(0..100);
        let (sql, then) = match self.block {
            Block::None if dice < 60 => {
                self.savepoint = false;
                let level = if dice < 15 { " ISOLATION LEVEL REPEATABLE READ" } else { "" };
                (format!("BEGIN{level}"), Block::Open)
            }
            Block::None => (statement(rng, label), Block::None),
            Block::Open if dice < 14 => ("COMMIT".to_owned(), Block::None),
            Block::Open if dice < 18 => ("ROLLBACK".to_owned(), Block::None),
            Block::Open if dice < 26 => {
                self.savepoint = true;
                ("SAVEPOINT s".to_owned(), Block::Open)
            }
            Block::Open if dice < 32 && self.savepoint => ("ROLLBACK TO s".to_owned(), Block::Open),
            Block::Open => (statement(rng, label), Block::Open),
            Block::Failed if dice < 70 && self.savepoint => ("ROLLBACK TO s".to_owned(), Block::Open),
            Block::Failed => ("ROLLBACK".to_owned(), Block::None),
        };
        self.begin(sql, then);
    }

    /// Whether its statement has ended; if not, it waits for somebody else's lock.
    async fn resolve(&mut self, pg: &Pg) -> bool {
        let blocked = format!("SELECT cardinality(pg_blocking_pids({})) > 0", self.pid);
        while let Some((running, then)) = self.running.take() {
            if !running.is_finished() && pg.value(&blocked).await == "t" {
                self.running = Some((running, then));
                return false;
            }
            if !running.is_finished() {
                self.running = Some((running, then));
                tokio::task::yield_now().await;
                continue;
            }
            self.block = match running.await.expect("a statement does not panic") {
                Ok(()) => then,
                Err(error) => {
                    assert!(is_expected(&error), "{error:?}");
                    if self.block == Block::None { Block::None } else { Block::Failed }
                }
            };
        }
        true
    }
}

/// A key that is taken, a deadlock, a row that somebody else has changed: what a history is made of.
fn is_expected(error: &tokio_postgres::Error) -> bool {
    let code = error.code().map(|code| code.code()).unwrap_or_default();
    ["23505", "40P01", "40001", "55P03", "21000"].contains(&code)
}

fn statement(rng: &mut StdRng, label: usize) -> String {
    let t = TABLES.choose(rng).expect("there are tables");
    // Most of the time the same two, so that sessions meet.
    let mut key = || if rng.random_bool(0.6) { rng.random_range(1..3) } else { rng.random_range(-2..6_i32) };
    let (x, y, z) = (key(), key(), key());
    let mut unique = || if rng.random_bool(0.3) { "NULL".to_owned() } else { rng.random_range(1..6).to_string() };
    let (u, w) = (unique(), unique());
    match rng.random_range(0..100) {
        0..14 => format!("INSERT INTO {t} VALUES ({x}, {u}, '{label}')"),
        14..22 => format!(
            "INSERT INTO {t} VALUES ({x}, {u}, '{label}') ON CONFLICT (id) DO UPDATE SET v = excluded.v, u = excluded.u"
        ),
        22..27 => format!("INSERT INTO {t} VALUES ({x}, {u}, '{label}'), ({y}, {w}, '{label}') ON CONFLICT DO NOTHING"),
        27..31 => format!("INSERT INTO {t} VALUES ({x}, {u}, '{label} 1'), ({y}, {w}, '{label} 2')"),
        31..39 => format!("UPDATE {t} SET v = '{label}' WHERE id = {x}"),
        39..44 => format!("UPDATE {t} SET u = {u} WHERE id = {x}"),
        44..55 => format!("UPDATE {t} SET id = {y}, v = '{label}' WHERE id = {x}"),
        55..59 => format!("UPDATE {t} SET id = -id, v = '{label} ' || id WHERE id IN ({x}, {y}, {z})"),
        59..61 => format!("UPDATE {t} SET id = -id"),
        61..63 => format!("UPDATE {t} SET id = CASE id WHEN {x} THEN {y} ELSE {x} END WHERE id IN ({x}, {y})"),
        63..67 => format!(
            "DO $$ BEGIN UPDATE {t} SET id = 99 WHERE id = {x}; UPDATE {t} SET id = {x} WHERE id = {y}; \
             UPDATE {t} SET id = {y}, v = '{label}' WHERE id = 99; END $$"
        ),
        67..77 => format!("DELETE FROM {t} WHERE id = {x}"),
        77..83 => format!("DELETE FROM {t} WHERE id = {x}; INSERT INTO {t} VALUES ({x}, {u}, '{label}')"),
        83..90 => format!(
            "MERGE INTO {t} USING (VALUES ({x}, 'x{label}'), ({y} + 3, 'y{label}')) AS s (id, v) ON {t}.id = s.id \
             WHEN MATCHED AND {t}.u % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v, id = s.id - 1 \
             WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, s.v)"
        ),
        90..94 => {
            let rows = (0..3).map(|row| format!("{},,{label}_{row}", x + row)).collect::<Vec<_>>().join(" ");
            format!("COPY {t} FROM PROGRAM 'printf \"%s\\n\" {rows}' WITH (FORMAT csv)")
        }
        94..97 => format!("SELECT FROM {t} WHERE id IN ({x}, {y}) FOR UPDATE"),
        97..99 => format!("DELETE FROM {t} WHERE u = {u}"),
        _ => format!("TRUNCATE {t}"),
    }
}

/// Runs one history to the end of all its transactions.
async fn history(db: &TestDb, rng: &mut StdRng, sessions: &mut [Session], number: usize) {
    for step in 0..STEPS {
        let session = &mut sessions[rng.random_range(0..SESSIONS)];
        if session.running.is_none() {
            session.step(rng, number * STEPS + step);
        }
        // A statement's end may let another one go on.
        for session in &mut *sessions {
            session.resolve(&db.pg).await;
        }
    }
    loop {
        let mut open = false;
        for session in &mut *sessions {
            if !session.resolve(&db.pg).await {
                open = true;
            } else if session.block != Block::None {
                session.begin("COMMIT".to_owned(), Block::None);
                open = true;
            }
        }
        if !open {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_transactions_end_equal_and_do_so_again_when_replayed() {
    let mut rng = seeded_rng();
    let db = TestDb::new("version").await;
    // The second unique index of `a` is looked at before the key's, that of `b` after it.
    db.pg
        .execute(
            "CREATE TABLE a (id int NOT NULL, u int, v text); CREATE UNIQUE INDEX a_u ON a (u);
             ALTER TABLE a ADD PRIMARY KEY (id);
             CREATE TABLE b (id int PRIMARY KEY, u int UNIQUE, v text); ALTER TABLE b REPLICA IDENTITY FULL",
        )
        .await;
    let mut daemon = Daemon::spawn(&db, "[batch]\nmax_rows = 20\nmax_delay = \"20ms\"");
    daemon.wait_ready().await;
    let past = Past::begin(&db).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(Session::new(&db.pg).await);
    }
    let mut positions = Vec::new();
    for number in 0..HISTORIES {
        history(&db, &mut rng, &mut sessions, number).await;
        assert_settled_equal(&db, &TABLES).await;
        positions.push(db.pg.value("SELECT pg_current_wal_lsn()").await);
    }
    let position = positions.choose(&mut rng).expect("there are positions");
    for (round, from) in [Some(position.as_str()), None, Some(position.as_str())].into_iter().enumerate() {
        println!("replay {round} from {from:?}");
        if rng.random() {
            daemon.kill9();
        } else {
            daemon.sigterm(Duration::from_secs(20)).await;
        }
        let merged = TABLES.choose(&mut rng).expect("there are tables");
        db.ch.query(&format!("OPTIMIZE TABLE {merged} FINAL")).await;
        past.restore(&db, from).await;
        daemon.start();
        assert_settled_equal(&db, &TABLES).await;
    }
    drop(daemon);
    db.cleanup().await;
}
