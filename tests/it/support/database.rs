//! A database of its own for each test, under one name on both servers.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::clickhouse::{Ch, ClickHouse};
use super::postgres::{Pg, Postgres};
use super::process::run_directory;

/// A fresh PostgreSQL database, and the name of the ClickHouse database that walhouse shall fill.
///
/// Dropping it drops both and every slot on them, also when the test fails: a slot left behind would hold back the WAL
/// of the server that the other tests use.
pub(crate) struct TestDb {
    /// Also the name of the slot.
    pub(crate) name: String,
    pub(crate) pg: Pg,
    pub(crate) ch: Ch,
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) clickhouse: Arc<ClickHouse>,
    /// For configurations and logs; goes with the database unless the test fails.
    pub(crate) directory: PathBuf,
    clean: bool,
}

impl TestDb {
    /// On the servers that all tests share.
    pub(crate) async fn new(label: &str) -> Self {
        Self::on(Postgres::shared(), ClickHouse::shared(), label).await
    }

    /// On servers that the test may kill. `label`: lower case letters, digits and underscores.
    pub(crate) async fn on(postgres: Arc<Postgres>, clickhouse: Arc<ClickHouse>, label: &str) -> Self {
        let name = format!("{label}_{:08x}", rand::random::<u32>());
        println!("database {name}: PostgreSQL on port {}, ClickHouse on port {}", postgres.port(), clickhouse.port());
        let directory = run_directory().join(&name);
        fs::create_dir(&directory).expect("the directory of a test can be made");
        Pg::new(postgres.clone(), "postgres").execute(&format!("CREATE DATABASE {name} TEMPLATE template0")).await;
        let pg = Pg::new(postgres.clone(), &name);
        let ch = Ch::new(clickhouse.clone(), &name);
        Self { name, pg, ch, postgres, clickhouse, directory, clean: false }
    }

    /// Drops slots and databases now. Without it, dropping the value does the same with less ceremony.
    pub(crate) async fn cleanup(mut self) {
        self.clean = true;
        drop_all(self.postgres.clone(), &self.ch, &self.name).await.expect("slots and databases can be dropped");
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if !self.clean {
            let (postgres, ch, name) = (self.postgres.clone(), self.ch.clone(), self.name.clone());
            // A thread and a runtime of its own, since this may be inside of one that must not block.
            let work = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
                let work =
                    async { tokio::time::timeout(Duration::from_secs(10), drop_all(postgres, &ch, &name)).await };
                runtime.block_on(work).ok()
            });
            // The test may have killed the servers; then there is nothing left to drop.
            let _ = work.join();
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

async fn drop_all(postgres: Arc<Postgres>, ch: &Ch, name: &str) -> Result<(), String> {
    let pg = Pg::new(postgres, "postgres");
    let here = format!("FROM pg_replication_slots WHERE database = '{name}'");
    loop {
        pg.try_query(&format!("SELECT pg_terminate_backend(active_pid) {here} AND active")).await?;
        pg.try_query(&format!("SELECT pg_drop_replication_slot(slot_name) {here} AND NOT active")).await?;
        if pg.try_query(&format!("SELECT slot_name {here}")).await?.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    pg.try_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
    ch.drop_database().await
}
