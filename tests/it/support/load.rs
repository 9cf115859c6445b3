//! A mixed load, as a busy application makes it: seeded, on several connections at once, over few keys, so that sessions
//! meet on the same rows. It survives the server's crashes by connecting again, and stops when it is asked to.
//!
//! Some of its columns are always stored out of line, so that an UPDATE which leaves one alone sends no value of it.
//! What a session was doing when its server died is for PostgreSQL to know: the oracle reads its end state there.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::database::TestDb;
use super::postgres::Pg;

/// The tables that the load writes, in the words of `assert_equal`.
pub(crate) const LOAD_TABLES: [&str; 3] = ["item", "line", "account"];

const SCHEMA: &str = "CREATE TABLE item (id int8 PRIMARY KEY, name text, price numeric(12, 2), ok bool,
        at timestamptz DEFAULT now(), body text, note text, raw bytea);
    ALTER TABLE item ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL;
    CREATE TABLE line (head int4, n int2, sku text, qty int4, details text, PRIMARY KEY (head, n));
    ALTER TABLE line ALTER details SET STORAGE EXTERNAL;
    CREATE TABLE account (id int4 PRIMARY KEY, balance int8 NOT NULL, version int8 NOT NULL DEFAULT 0)";

const ITEMS: Range<u32> = 0..300;
const HEADS: Range<u32> = 0..40;
const LINES: Range<u32> = 0..6;
const ACCOUNTS: Range<u32> = 0..50;
/// Between two transactions of one session: the machine also has to run all that is tested.
const PACE: Duration = Duration::from_millis(4);

/// Sessions that write until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
}

impl Load {
    /// Creates the tables and puts rows into them: what is there before walhouse comes is copied.
    pub(crate) async fn prepare(db: &TestDb, rng: &mut StdRng) {
        db.pg.execute(SCHEMA).await;
        let mut rows = String::new();
        for id in ITEMS.step_by(2) {
            rows +=
                &format!("INSERT INTO item (id, name, body, note) VALUES ({id}, 'first', {}, 'short');\n", big(rng));
        }
        for id in ACCOUNTS {
            rows += &format!("INSERT INTO account VALUES ({id}, 1000);\n");
        }
        db.pg.execute(&rows).await;
    }

    /// Begins to write, on `sessions` connections.
    pub(crate) fn start(db: &TestDb, rng: &mut StdRng, sessions: usize) -> Self {
        let (stop, commits) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let sessions = (0..sessions).map(|_| {
            let session = Session {
                pg: db.pg.clone(),
                rng: StdRng::seed_from_u64(rng.random()),
                stop: Arc::clone(&stop),
                commits: Arc::clone(&commits),
            };
            tokio::spawn(session.run())
        });
        Self { sessions: sessions.collect(), stop, commits }
    }

    /// How many transactions have been committed so far.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits until `more` transactions have been committed from now on.
    pub(crate) async fn wait_commits(&self, more: u64) {
        let goal = self.commits() + more;
        super::eventually(Duration::from_secs(60), async || {
            let now = self.commits();
            if now >= goal { Ok(()) } else { Err(format!("{now} commits, {goal} are waited for")) }
        })
        .await;
    }

    /// Ends every session after the transaction that it is in, and returns the number of commits.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.expect("a session of the load does not panic");
        }
        let commits = self.commits.load(Ordering::Relaxed);
        println!("the load made {commits} commits");
        commits
    }
}

struct Session {
    pg: Pg,
    rng: StdRng,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
}

impl Session {
    async fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            match self.pg.connect().await {
                Ok(client) => self.work(&client).await,
                Err(_down) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Until it is stopped or the server has gone.
    async fn work(&mut self, client: &Client) {
        // Sessions that meet on few rows block each other often; that shall not be most of the time.
        let settings = "SET deadlock_timeout = '20ms'; SET lock_timeout = '2s'; SET search_path = public";
        if client.batch_execute(settings).await.is_err() {
            return;
        }
        while !self.stop.load(Ordering::Relaxed) && !client.is_closed() {
            match self.transaction(client).await {
                Ok(true) => _ = self.commits.fetch_add(1, Ordering::Relaxed),
                Ok(false) => {}
                // A unique key in the way, a deadlock, or the server's end: nothing of it shall stay.
                Err(_failed) => _ = client.batch_execute("ROLLBACK").await,
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// One transaction; says whether it was committed.
    async fn transaction(&mut self, client: &Client) -> Result<bool, tokio_postgres::Error> {
        let statements = if self.rng.random_bool(0.4) { 1 } else { self.rng.random_range(2..7) };
        client.batch_execute("BEGIN").await?;
        for _ in 0..statements {
            if !self.rng.random_bool(0.25) {
                client.batch_execute(&self.statement()).await?;
                continue;
            }
            client.batch_execute("SAVEPOINT s").await?;
            let inner = client.batch_execute(&format!("{}; {}", self.statement(), self.statement())).await;
            let keep = inner.is_ok() && self.rng.random_bool(0.5);
            client.batch_execute(if keep { "RELEASE s" } else { "ROLLBACK TO s" }).await?;
        }
        let commit = self.rng.random_bool(0.9);
        client.batch_execute(if commit { "COMMIT" } else { "ROLLBACK" }).await?;
        Ok(commit)
    }

    fn statement(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..55 => self.item(),
            55..85 => self.line(),
            _ => self.account(),
        }
    }

    fn item(&mut self) -> String {
        let rng = &mut self.rng;
        let (id, other) = (rng.random_range(ITEMS), rng.random_range(ITEMS));
        let price = format!("{}.{:02}", rng.random_range(0..100_000), rng.random_range(0..100));
        match rng.random_range(0..100) {
            0..22 => format!(
                "INSERT INTO item (id, name, price, body, note, raw) VALUES ({id}, '{}', {price}, {}, {}, {})
                ON CONFLICT (id) DO UPDATE SET name = excluded.name, note = excluded.note",
                word(rng),
                big(rng),
                big(rng),
                bytes(rng)
            ),
            // These leave every column alone that is stored out of line.
            22..45 => format!("UPDATE item SET price = {price}, ok = NOT ok, at = clock_timestamp() WHERE id = {id}"),
            45..50 => format!("UPDATE item SET name = '{}' WHERE id % 37 = {}", word(rng), id % 37),
            50..65 => format!("UPDATE item SET id = {other} WHERE id = {id}"),
            // These change some of them.
            65..75 => format!("UPDATE item SET body = {} WHERE id = {id}", big(rng)),
            75..82 => format!("UPDATE item SET note = {}, raw = {} WHERE id = {id}", big(rng), bytes(rng)),
            82..86 => format!("UPDATE item SET body = NULL, note = '' WHERE id = {id}"),
            86..90 => format!("UPDATE item SET id = {other}, note = {} WHERE id = {id}", big(rng)),
            90..96 => format!("DELETE FROM item WHERE id = {id}"),
            // Gone and back within one transaction.
            _ => format!(
                "DELETE FROM item WHERE id = {id}; INSERT INTO item (id, name, body) VALUES ({id}, 'again', {})",
                big(rng)
            ),
        }
    }

    fn line(&mut self) -> String {
        let rng = &mut self.rng;
        let (head, n) = (rng.random_range(HEADS), rng.random_range(LINES));
        let (to_head, to_n) = (rng.random_range(HEADS), rng.random_range(LINES));
        let qty = rng.random_range(0..1000);
        match rng.random_range(0..100) {
            0..35 => format!(
                "INSERT INTO line VALUES ({head}, {n}, '{}', {qty}, {})
                ON CONFLICT (head, n) DO UPDATE SET qty = line.qty + excluded.qty",
                word(rng),
                big(rng)
            ),
            35..55 => format!("UPDATE line SET qty = {qty} WHERE head = {head}"),
            55..70 => format!("UPDATE line SET head = {to_head}, n = {to_n} WHERE head = {head} AND n = {n}"),
            70..80 => format!("UPDATE line SET details = {} WHERE head = {head} AND n = {n}", big(rng)),
            80..92 => format!("DELETE FROM line WHERE head = {head} AND n = {n}"),
            92..96 => format!("DELETE FROM line WHERE head = {head}"),
            _ => format!(
                "INSERT INTO line SELECT {head}, n, 'many', n, {} FROM generate_series(0, 5) n ON CONFLICT DO NOTHING",
                big(rng)
            ),
        }
    }

    fn account(&mut self) -> String {
        let rng = &mut self.rng;
        let (from, to) = (rng.random_range(ACCOUNTS), rng.random_range(ACCOUNTS));
        let amount = rng.random_range(1..50);
        format!(
            "UPDATE account SET balance = balance - {amount}, version = version + 1 WHERE id = {from};
            UPDATE account SET balance = balance + {amount}, version = version + 1 WHERE id = {to}"
        )
    }
}

fn word(rng: &mut StdRng) -> String {
    format!("{:x}", rng.random::<u32>())
}

/// Text that does not compress, quoted, and always stored out of line.
fn big(rng: &mut StdRng) -> String {
    let length = rng.random_range(2_100..8_000);
    let alphabet = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let text: String = (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect();
    format!("'{text}'")
}

fn bytes(rng: &mut StdRng) -> String {
    let length = rng.random_range(2_100..4_000);
    let hex: String = (0..length).map(|_| format!("{:02x}", rng.random::<u8>())).collect();
    format!("'\\x{hex}'")
}
