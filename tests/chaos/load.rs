//! Sessions that say what their scripts hold, each on a connection of its own, and count what was committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use crate::script::{Script, Step, Transaction};
use crate::support::{Pg, eventually};

/// Between two transactions of one session: the machine also has to run all that is tested. It grows with what was committed, by
/// once more for each so many: a fault that takes its time meets a load, and not one without end.
const PACE: Duration = Duration::from_millis(20);
const SLOWER: u64 = 100;
const SESSIONS: usize = 4;
/// Statements of a thousand that change a table's shape, usually and in a storm.
const SOME_DDL: u32 = 15;
const STORM: u32 = 400;

/// Sessions that write until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    sessions: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to write. `storm`: one session does little but change the shape of its table.
    pub(crate) fn start(pg: &Pg, rng: &mut StdRng, storm: bool) -> Self {
        let (stop, commits) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let sessions = (0..SESSIONS).map(|number| {
            let ddl = match number {
                0 if storm => STORM,
                0 => SOME_DDL,
                _ => 0,
            };
            let script = Script::new(rng.random(), ddl);
            let session = Session { pg: pg.clone(), script, stop: Arc::clone(&stop), commits: Arc::clone(&commits) };
            tokio::spawn(session.run())
        });
        Self { sessions: sessions.collect(), stop, commits }
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// The number of committed transactions, for who looks at it beside.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.commits)
    }

    /// Waits until so many more transactions were committed.
    pub(crate) async fn wait_commits(&self, more: u64) {
        self.wait_for(self.commits() + more).await;
    }

    /// Waits until so many were.
    pub(crate) async fn wait_for(&self, goal: u64) {
        eventually(Duration::from_secs(120), async || {
            let now = self.commits();
            if now >= goal { Ok(()) } else { Err(format!("{now} commits, {goal} are waited for")) }
        })
        .await;
    }

    /// Ends every session after the transaction that it is in.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for session in self.sessions {
            session.await.expect("a session of the load does not panic");
        }
        self.commits.load(Ordering::Relaxed)
    }
}

struct Session {
    pg: Pg,
    script: Script,
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
            match play(client, &self.script.transaction()).await {
                Ok(true) => _ = self.commits.fetch_add(1, Ordering::Relaxed),
                Ok(false) => {}
                // A unique key in the way, a deadlock, or the server's end: nothing of it shall stay.
                Err(_failed) => _ = client.batch_execute("ROLLBACK").await,
            }
            let commits = self.commits.load(Ordering::Relaxed);
            tokio::time::sleep(PACE + PACE * u32::try_from(commits / SLOWER).unwrap_or(u32::MAX)).await;
        }
    }
}

/// One transaction; says whether it was committed. What fails in a subtransaction ends that one alone.
async fn play(client: &Client, transaction: &Transaction) -> Result<bool, Error> {
    client.batch_execute("BEGIN").await?;
    let (mut depth, mut failed) = (0, None);
    for step in &transaction.steps {
        match step {
            Step::Run(_) if failed.is_some() => {}
            Step::Run(sql) => match client.batch_execute(sql).await {
                Err(error) if depth == 0 => return Err(error),
                Err(_failed) => failed = Some(depth),
                Ok(()) => {}
            },
            Step::Enter => {
                depth += 1;
                if failed.is_none() {
                    client.batch_execute(&format!("SAVEPOINT s{depth}")).await?;
                }
            }
            Step::Leave { keep } => {
                if failed.is_none_or(|at| at == depth) {
                    let end = if *keep && failed.is_none() { "RELEASE" } else { "ROLLBACK TO" };
                    client.batch_execute(&format!("{end} s{depth}")).await?;
                    failed = None;
                }
                depth -= 1;
            }
        }
    }
    client.batch_execute(if transaction.commit { "COMMIT" } else { "ROLLBACK" }).await?;
    Ok(transaction.commit)
}
