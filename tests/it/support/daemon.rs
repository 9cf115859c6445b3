//! `walhouse run` as a process, which a test can kill, freeze and start again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::database::TestDb;
use super::http::get;
use super::process::{free_port, processor_seconds, signal, tail, wait_for};
use super::toml::overlay;
use super::{Response, eventually};

/// How long it may take until something is so, on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(180);
/// What it says when it begins to read the slot.
const STREAMING: &str = "INFO streaming slot=";

/// A daemon and its configuration. Dropping it kills it, and shows its log when the test has failed.
pub(crate) struct Daemon {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
    /// Where it works from its next start on; this process's without it.
    directory: Option<PathBuf>,
    /// Processor seconds of its lives before this one.
    spent: f64,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Daemon {
    /// Starts `walhouse run` on the test's databases; `extra` is TOML that goes over the usual configuration.
    pub(crate) fn spawn(db: &TestDb, extra: &str) -> Self {
        let port = free_port();
        let id = rand::random::<u32>();
        let config = write_config(db, extra, port, &format!("walhouse-{id:08x}.toml"));
        let log = config.with_extension("log");
        let child = launch(&config, &log, &[], None);
        Self { child, config, log, port, environment: Vec::new(), directory: None, spent: 0.0 }
    }

    /// Starts it again after its end, with the same configuration and the same log.
    pub(crate) fn start(&mut self) {
        assert!(self.ended_by_itself().is_some(), "walhouse is still running");
        self.child = launch(&self.config, &self.log, &self.environment, self.directory.as_deref());
    }

    /// What it finds in its environment from its next start on, beside ours.
    pub(crate) fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// Its working directory from its next start on.
    pub(crate) fn set_directory(&mut self, directory: &Path) {
        self.directory = Some(directory.to_owned());
    }

    /// How it has ended, if it has.
    pub(crate) fn ended_by_itself(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// A crash.
    pub(crate) fn kill9(&mut self) {
        self.spent = self.processor_seconds();
        self.child.kill().expect("walhouse can be killed");
        self.child.wait().expect("walhouse can be waited for");
    }

    /// Asks it to stop, and fails the test when it has not within `timeout`.
    pub(crate) async fn sigterm(&mut self, timeout: Duration) -> ExitStatus {
        self.spent = self.processor_seconds();
        signal("TERM", &[self.child.id()]);
        self.ended(timeout).await
    }

    /// Waits for it to end by itself.
    pub(crate) async fn wait_exit(&mut self, timeout: Duration) -> (i32, String) {
        let status = self.ended(timeout).await;
        (status.code().unwrap_or_else(|| panic!("walhouse: {status}")), self.log())
    }

    /// Its sockets stay open and nothing is answered.
    pub(crate) fn freeze(&self) {
        signal("STOP", &[self.child.id()]);
    }

    pub(crate) fn resume(&self) {
        signal("CONT", &[self.child.id()]);
    }

    /// Waits until all copies are done and the lag is small: `/readyz` says 200.
    pub(crate) async fn wait_ready(&mut self) {
        eventually(PATIENCE, async || {
            let end = self.ended_by_itself();
            assert!(end.is_none(), "walhouse ended before it was ready: {end:?}");
            let answer = self.get("/readyz").await?;
            if answer.status == 200 { Ok(()) } else { Err(format!("/readyz: {} {}", answer.status, answer.body)) }
        })
        .await;
    }

    /// A page of its HTTP server.
    pub(crate) async fn get(&self, path: &str) -> Result<Response, String> {
        get(self.port, path).await
    }

    /// The whole page of metrics.
    pub(crate) async fn metrics(&self) -> String {
        self.get("/metrics").await.expect("walhouse serves /metrics").body
    }

    /// The sum over all series of one metric whose labels contain `labels`, 0 where there is none yet.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = self.metrics().await;
        let series = page.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (own, of) = series.split_once('{').unwrap_or((series, ""));
            (own == name && of.contains(labels)).then(|| value.parse::<f64>().ok())?
        });
        series.sum()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it serves metrics and health.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The processor time that it has taken so far, but for the end of a life that it ended by itself.
    pub(crate) fn processor_seconds(&self) -> f64 {
        self.spent + processor_seconds(&Path::new("/proc").join(format!("{}/stat", self.pid())))
    }

    /// Resident memory.
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("walhouse is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has a VmRSS");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is in kB");
        kilobytes * 1024
    }

    /// All that it has written, over all of its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has written `text` so many times, over all of its lives.
    pub(crate) async fn wait_log(&self, text: &str, times: usize) {
        eventually(PATIENCE, async || {
            let found = self.log().matches(text).count();
            if found >= times { Ok(()) } else { Err(format!("{text:?} is in the log {found} times, not {times}")) }
        })
        .await;
    }

    /// How many times it has begun to stream.
    pub(crate) fn streams(&self) -> usize {
        self.log().matches(STREAMING).count()
    }

    /// Waits until it has begun to stream once more than `before`.
    pub(crate) async fn wait_streams(&self, before: usize) {
        self.wait_log(STREAMING, before + 1).await;
    }

    /// The configuration file, for other commands on the same databases.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    async fn ended(&mut self, timeout: Duration) -> ExitStatus {
        tokio::task::block_in_place(|| wait_for(&mut self.child, timeout))
            .unwrap_or_else(|| panic!("walhouse has not ended within {timeout:?}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}\n---", self.log.display(), tail(&self.log, 60));
        }
    }
}

/// Runs one command of walhouse to its end: `walhouse(daemon.config(), &["verify"])`.
pub(crate) async fn walhouse(config: &Path, arguments: &[&str]) -> Exit {
    let mut command = Command::new(binary());
    command.arg("--config").arg(config).args(arguments).stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output()).expect("walhouse can be started");
    Exit {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Writes the usual configuration with `extra` laid over it into the test's directory.
pub(crate) fn write_config(db: &TestDb, extra: &str, http_port: u16, file: &str) -> PathBuf {
    let usual = format!(
        r#"
        [source]
        url = "{source}"
        slot = "{name}"
        publication = "walhouse"
        tables = ["public.*"]
        [clickhouse]
        url = "http://127.0.0.1:{clickhouse}"
        database = "{name}"
        user = "default"
        [batch]
        max_delay = "100ms"
        [http]
        listen = "127.0.0.1:{http_port}"
        [objects]
        url = "file://{objects}/objects"
        "#,
        source = db.pg.url(),
        objects = db.directory.display(),
        name = db.name,
        clickhouse = db.clickhouse.port(),
    );
    let path = db.directory.join(file);
    fs::write(&path, overlay(&usual, extra)).expect("the configuration can be written");
    path
}

/// The program that was built with the tests, or the one that `WALHOUSE_PROGRAM` names.
fn binary() -> PathBuf {
    std::env::var_os("WALHOUSE_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_walhouse").into(), PathBuf::from)
}

fn launch(config: &Path, log: &Path, environment: &[(String, String)], directory: Option<&Path>) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("the log can be opened");
    let program = fs::canonicalize(binary()).expect("walhouse is built");
    Command::new(program)
        .current_dir(directory.unwrap_or(Path::new(".")))
        .arg("run")
        .arg("--config")
        .arg(config)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file can be cloned"))
        .stderr(log)
        .spawn()
        .expect("walhouse can be started")
}
