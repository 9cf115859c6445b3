//! A real ClickHouse: the one that all tests share, or one of a test's own that it may kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::http::post;
use super::process::{Disk, Server, free_port, run_directory, signal};

/// What a private ClickHouse differs in.
#[derive(Default)]
pub(crate) struct ClickHouseOptions {
    /// XML of users beside `default`, who may do everything: see `user`.
    pub(crate) users: String,
    /// XML of server settings.
    pub(crate) settings: String,
    /// The bytes that the whole server may use.
    pub(crate) memory: Option<u64>,
    /// The bytes of a disk of its own, which is in memory; only root may make one.
    pub(crate) disk: Option<u64>,
}

/// A user for `ClickHouseOptions::users`, who may do what `grants` say: `GRANT SELECT ON *.*` and the like.
pub(crate) fn user(name: &str, password: &str, grants: &[&str]) -> String {
    let grants: String = grants.iter().map(|grant| format!("<query>{grant}</query>")).collect();
    format!(
        "<{name}><password>{password}</password><networks><ip>::/0</ip></networks><profile>default</profile>
        <quota>default</quota><grants>{grants}</grants></{name}>"
    )
}

/// A ClickHouse server with an HTTP port.
pub(crate) struct ClickHouse {
    server: Server,
    port: u16,
    /// Goes after the server.
    disk: Option<Disk>,
}

impl ClickHouse {
    /// The server of this test run.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<ClickHouse>> = OnceLock::new();
        SHARED.get_or_init(|| Self::started("clickhouse", ClickHouseOptions::default())).clone()
    }

    /// A server for this test alone.
    pub(crate) fn private(options: ClickHouseOptions) -> Arc<Self> {
        Self::started(&format!("clickhouse-{:08x}", rand::random::<u32>()), options)
    }

    fn started(name: &str, options: ClickHouseOptions) -> Arc<Self> {
        let port = free_port();
        let mut arguments = vec!["--http-port".to_owned(), port.to_string()];
        if !options.users.is_empty() || !options.settings.is_empty() {
            let file = write_configuration(name, &options);
            arguments.extend(["--config-file".to_owned(), file.display().to_string()]);
        }
        if let Some(bytes) = options.memory {
            arguments.extend(["--memory".to_owned(), bytes.to_string()]);
        }
        let server = Server::new("clickhouse", name, arguments);
        let disk = options.disk.map(|bytes| Disk::at(server.directory(), bytes));
        server.start();
        Arc::new(Self { server, port, disk })
    }

    /// The HTTP port, the same after each restart.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the data; the log is beside it.
    pub(crate) fn directory(&self) -> &Path {
        self.server.directory()
    }

    /// Its own disk.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("this ClickHouse has a disk of its own")
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The processor time that it has taken so far.
    pub(crate) fn processor_seconds(&self) -> f64 {
        self.server.processor_seconds()
    }

    /// A crash.
    pub(crate) fn kill9(&self) {
        self.server.kill9(self.server.pid());
    }

    /// Starts it again on the same directory and port.
    pub(crate) fn start(&self) {
        self.server.start();
    }

    /// It still accepts connections and answers nothing.
    pub(crate) fn freeze(&self) {
        signal("STOP", &[self.pid()]);
    }

    pub(crate) fn resume(&self) {
        signal("CONT", &[self.pid()]);
    }
}

/// Writes both configuration files into the server's directory, and returns the one that names the other.
fn write_configuration(name: &str, options: &ClickHouseOptions) -> PathBuf {
    let directory = run_directory().join(name);
    fs::create_dir(&directory).expect("the directory of a server can be made");
    let (main, users) = (directory.join("walhouse-config.xml"), directory.join("walhouse-users.xml"));
    let grants = ["GRANT ALL ON *.* WITH GRANT OPTION"];
    let all = user("default", "", &grants) + &options.users;
    let profiles = "<profiles><default/></profiles><quotas><default/></quotas>";
    let users_xml = format!("<clickhouse><users>{all}</users>{profiles}</clickhouse>");
    fs::write(&users, users_xml).expect("the users of a server can be written");
    let reference = format!("<users_config>{}</users_config>", users.display());
    let xml = format!("<clickhouse>{reference}{}</clickhouse>", options.settings);
    fs::write(&main, xml).expect("the configuration of a server can be written");
    main
}

/// One database of a ClickHouse server.
#[derive(Clone)]
pub(crate) struct Ch {
    server: Arc<ClickHouse>,
    database: String,
}

impl Ch {
    pub(crate) fn new(server: Arc<ClickHouse>, database: &str) -> Self {
        Self { server, database: database.to_owned() }
    }

    /// Runs one statement and returns its rows as TabSeparated, without the last line's end.
    pub(crate) async fn query(&self, sql: &str) -> String {
        self.try_query(sql).await.unwrap_or_else(|error| panic!("ClickHouse: {sql}: {error}"))
    }

    /// As `query`, with ClickHouse's message as the error.
    pub(crate) async fn try_query(&self, sql: &str) -> Result<String, String> {
        self.send(&format!("&database={}", self.database), sql).await
    }

    /// As `try_query`, for somebody else.
    pub(crate) async fn try_query_as(&self, user: &str, password: &str, sql: &str) -> Result<String, String> {
        self.send(&format!("&user={user}&password={password}"), sql).await
    }

    /// Creates the database; walhouse would do so by itself.
    pub(crate) async fn create_database(&self) {
        let sql = format!("CREATE DATABASE IF NOT EXISTS `{}` ENGINE = Atomic", self.database);
        self.send("", &sql).await.unwrap_or_else(|error| panic!("ClickHouse: {sql}: {error}"));
    }

    pub(crate) async fn drop_database(&self) -> Result<(), String> {
        self.send("", &format!("DROP DATABASE IF EXISTS `{}` SYNC", self.database)).await.map(|_nothing| ())
    }

    async fn send(&self, parameters: &str, sql: &str) -> Result<String, String> {
        let path = format!("/?wait_end_of_query=1&output_format_decimal_trailing_zeros=1{parameters}");
        let answer = post(self.server.port(), &path, "", sql).await?;
        if answer.status == 200 {
            return Ok(answer.body.strip_suffix('\n').unwrap_or(&answer.body).to_owned());
        }
        Err(answer.body.trim_end().to_owned())
    }
}
