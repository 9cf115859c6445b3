//! A real PostgreSQL: the one that all tests share, or one of a test's own that it may kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::certificates::{Authority, Pair};
use super::eventually;
use super::process::{Server, family, free_port, signal};

/// What a private PostgreSQL differs in.
pub(crate) struct PostgresOptions {
    /// `"14"` to `"18"`.
    pub(crate) version: &'static str,
    /// `("wal_level", "replica")` and the like.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// Lines of `pg_hba.conf` that go before those that trust everybody.
    pub(crate) hba: Vec<String>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { version: "15", settings: Vec::new(), hba: Vec::new() }
    }
}

/// A PostgreSQL server with logical decoding, on a TCP port and on a Unix socket.
pub(crate) struct Postgres {
    server: Server,
    port: u16,
}

impl Postgres {
    /// The server of this test run.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Postgres>> = OnceLock::new();
        SHARED.get_or_init(|| Self::started("postgres", PostgresOptions::default())).clone()
    }

    /// A server for this test alone.
    pub(crate) fn private(options: PostgresOptions) -> Arc<Self> {
        Self::started(&format!("postgres-{:08x}", rand::random::<u32>()), options)
    }

    fn started(name: &str, options: PostgresOptions) -> Arc<Self> {
        let postgres = Self::described(name, options);
        postgres.server.start();
        postgres
    }

    fn described(name: &str, options: PostgresOptions) -> Arc<Self> {
        let port = free_port();
        let mut arguments =
            vec!["--version".to_owned(), options.version.to_owned(), "--port".to_owned(), port.to_string()];
        for (key, value) in options.settings {
            arguments.extend(["--setting".to_owned(), format!("{key}={value}")]);
        }
        for line in options.hba {
            arguments.extend(["--hba".to_owned(), line]);
        }
        Arc::new(Self { server: Server::new("postgres", name, arguments), port })
    }

    /// The TCP port, the same after each restart.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the data and of the Unix socket.
    pub(crate) fn directory(&self) -> &Path {
        self.server.directory()
    }

    /// The postmaster's process.
    pub(crate) fn pid(&self) -> u32 {
        let path = self.directory().join("postmaster.pid");
        let text = fs::read_to_string(path).expect("a running PostgreSQL has a postmaster.pid");
        text.lines().next().and_then(|line| line.parse().ok()).expect("postmaster.pid begins with a pid")
    }

    /// The processor time that it has taken so far.
    pub(crate) fn processor_seconds(&self) -> f64 {
        self.server.processor_seconds()
    }

    /// A crash of the postmaster; its children notice and follow.
    pub(crate) fn kill9(&self) {
        self.server.kill9(self.pid());
    }

    /// Starts it again on the same directory and port: crash recovery.
    pub(crate) fn start(&self) {
        self.server.start();
    }

    /// What a standby has to begin with: this server's files, for which it is stopped for a moment. Nobody may stream.
    pub(crate) fn base_backup(&self) -> PathBuf {
        self.server.end(self.pid(), "INT");
        let base = self.directory().with_extension("base");
        copy(self.directory(), &base);
        self.server.start();
        base
    }

    /// A standby that begins with `base`, another server's files; what it streams from is a matter of its settings.
    pub(crate) fn standby(base: &Path, options: PostgresOptions) -> Arc<Self> {
        // As pg_basebackup does: slots are their server's alone.
        for slot in fs::read_dir(base.join("pg_replslot")).expect("a server has slots") {
            fs::remove_dir_all(slot.expect("a slot has a name").path()).expect("a slot can be removed");
        }
        let postgres = Self::described(&format!("postgres-{:08x}", rand::random::<u32>()), options);
        fs::rename(base, postgres.directory()).expect("the server's files can be moved");
        be_standby(postgres.directory());
        postgres.server.start();
        postgres
    }

    /// A crash, after which there is a standby at this very port that was promoted when it had the WAL up to `position`, and
    /// the slots.
    pub(crate) fn fail_over(&self, base: &Path, position: &str) {
        self.kill9();
        let gone = self.directory().with_extension("gone");
        fs::rename(self.directory(), &gone).expect("the server's files can be moved");
        copy(base, self.directory());
        for part in ["pg_wal", "pg_replslot"] {
            fs::remove_dir_all(self.directory().join(part)).expect("it can be replaced");
            copy(&gone.join(part), &self.directory().join(part));
        }
        let settings = format!(
            "recovery_target_lsn = '{position}'\nrecovery_target_inclusive = off\nrecovery_target_action = promote\n"
        );
        // Its owner stays who it is.
        fs::write(self.directory().join("postgresql.auto.conf"), settings).expect("a standby can be configured");
        be_standby(self.directory());
        self.server.start();
        for directory in [base, &gone] {
            fs::remove_dir_all(directory).expect("it can be removed");
        }
    }

    /// From now on the server has TLS, with this certificate for new connections, and takes clients that `clients` vouches for.
    pub(crate) async fn show(self: &Arc<Self>, pair: &Pair, clients: &Authority) {
        let (certificate, key) = pair.write(self.directory(), "server");
        let roots = clients.write(self.directory(), "clients");
        let owner = format!("--reference={}", self.directory().join("PG_VERSION").display());
        let status = Command::new("chown").arg(owner).args([&certificate, &key, &roots]).status();
        assert!(status.expect("chown can be started").success());
        let pg = Pg::new(self.clone(), "postgres");
        pg.execute("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'").await;
        pg.execute("ALTER SYSTEM SET ssl = on").await;
        let before = pg.value("SELECT pg_conf_load_time()::text").await;
        pg.execute("SELECT pg_reload_conf()").await;
        // Whoever connects from the moment on at which the postmaster has it, has it too.
        eventually(Duration::from_secs(30), async || {
            let now = Pg::new(self.clone(), "postgres").value("SELECT pg_conf_load_time()::text").await;
            if now == before { Err("it was not read yet".to_owned()) } else { Ok(()) }
        })
        .await;
    }

    /// Every process of the server stands still; its connections stay open.
    pub(crate) fn freeze(&self) {
        signal("STOP", &family(self.pid()));
    }

    pub(crate) fn resume(&self) {
        signal("CONT", &family(self.pid()));
    }
}

/// A server with these files will be a standby. What says so belongs to its owner.
fn be_standby(directory: &Path) {
    let signal = directory.join("standby.signal");
    fs::write(&signal, "").expect("a standby can be made");
    let owner = format!("--reference={}", directory.join("PG_VERSION").display());
    Command::new("chown").arg(owner).arg(signal).status().expect("chown can be started");
}

/// A directory with all that is in it, and whose it is.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp can be started");
    assert!(status.success(), "cp -a {} {}: {status}", from.display(), to.display());
}

/// SQL on one database. Reconnects after a restart of the server.
#[derive(Clone)]
pub(crate) struct Pg {
    server: Arc<Postgres>,
    database: String,
    client: Arc<Mutex<Option<Arc<Client>>>>,
}

/// One row, each column as PostgreSQL's text.
pub(crate) type TextRow = Vec<Option<String>>;

impl Pg {
    pub(crate) fn new(server: Arc<Postgres>, database: &str) -> Self {
        Self { server, database: database.to_owned(), client: Arc::default() }
    }

    /// Runs statements, in one transaction unless they say otherwise.
    pub(crate) async fn execute(&self, sql: &str) {
        self.try_execute(sql).await.unwrap_or_else(|error| panic!("PostgreSQL: {sql}: {error}"));
    }

    /// As `execute`, with PostgreSQL's message as the error.
    pub(crate) async fn try_execute(&self, sql: &str) -> Result<(), String> {
        self.client().await?.batch_execute(sql).await.map_err(describe)
    }

    /// All rows as text.
    pub(crate) async fn query(&self, sql: &str) -> Vec<TextRow> {
        self.try_query(sql).await.unwrap_or_else(|error| panic!("PostgreSQL: {sql}: {error}"))
    }

    /// As `query`, with PostgreSQL's message as the error.
    pub(crate) async fn try_query(&self, sql: &str) -> Result<Vec<TextRow>, String> {
        let messages = self.client().await?.simple_query(sql).await.map_err(describe)?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The one value that `sql` selects; fails on no row and on NULL.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let first = self.query(sql).await.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        first.unwrap_or_else(|| panic!("PostgreSQL: {sql}: no value"))
    }

    /// A session of its own, for tests of concurrent transactions.
    pub(crate) async fn connect(&self) -> Result<Client, String> {
        self.connect_as("postgres").await
    }

    /// A session as `user` or as `user:password`.
    pub(crate) async fn connect_as(&self, who: &str) -> Result<Client, String> {
        let url = self.url_as(who);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.map_err(describe)?;
        // Ends with the client; an error reaches whoever uses that.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Over TCP, as the superuser, whom every address of this machine may be.
    pub(crate) fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// Over TCP, as `user` or as `user:password`.
    pub(crate) fn url_as(&self, who: &str) -> String {
        format!("postgres://{who}@127.0.0.1:{}/{}", self.server.port(), self.database)
    }

    async fn client(&self) -> Result<Arc<Client>, String> {
        let mut client = self.client.lock().await;
        match client.as_ref().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(Arc::new(self.connect().await?)).clone()),
        }
    }
}

fn describe(error: tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(database) => format!("{}: {}", database.code().code(), database.message()),
        None => error.to_string(),
    }
}
