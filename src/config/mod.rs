//! The configuration: one TOML file, and the environment over it.
//!
//! [`load`] gives a tree in which every value is usable: read, in range, consistent with the others,
//! its secrets resolved. Whatever is wrong is refused with the key's path, where it was set and what
//! is accepted; a key that nobody knows is an error, since a misspelt one would be a default in
//! silence. No output of this tree shows a secret: neither `Debug`, nor `Serialize`, nor an error.

mod batch;
mod http;
mod limits;
mod load;
mod log;
mod measures;
mod objects;
mod options;
mod parameter;
mod queue;
mod reports;
mod tables;
mod tls;
mod traces;
mod url;
mod value;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use batch::{BatchConfig, MemoryConfig};
pub use http::HttpConfig;
use limits::{database_name, http_url, identifier, slot_name, within};
pub use load::{ConfigError, load};
pub use log::LogConfig;
pub use measures::MetricsConfig;
pub use objects::{ObjectsConfig, Place};
pub use options::{ColumnConfig, Masking, MaskingConfig, OnDropColumn, SettingValue, TableConfig, TableOptions};
pub use parameter::{Parameter, ParameterType};
pub use queue::{QueueConfig, WorkerConfig, WorkersConfig};
pub use reports::{CsvFormulas, MERCHANT, OperationConfig, ReportConfig, WarehouseConfig, reports};
pub use tables::{Glob, TableFilter};
pub use tls::{ChannelBinding, SslMode, TlsConfig};
pub use traces::TracingConfig;
pub use url::{Endpoint, SourceUrl, is_loopback};
pub use value::{ByteSize, LogFormat, REDACTED, Timespan, Unrepresentable};
use value::{NotYet, secret};

/// The whole tree.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PostgreSQL: what is read, and through which slot.
    pub source: SourceConfig,
    /// ClickHouse: where it lands.
    #[serde(default)]
    pub clickhouse: ClickHouseConfig,
    /// When a batch is full.
    #[serde(default)]
    pub batch: BatchConfig,
    /// How much may be in flight.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Metrics, health and the API.
    #[serde(default)]
    pub http: HttpConfig,
    /// How much is measured.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// What is told, and how.
    #[serde(default)]
    pub log: LogConfig,
    /// Where traces go.
    #[serde(default)]
    pub tracing: TracingConfig,
    /// Where events go. Without it there is no queue lane, no worker, and no call to AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueConfig>,
    /// Who handles them.
    #[serde(default)]
    pub workers: WorkersConfig,
    /// Where the results of reports and exports are put.
    #[serde(default)]
    pub objects: ObjectsConfig,
    /// What one of them may cost.
    #[serde(default)]
    pub operation: OperationConfig,
    /// The star schema that the built-in ones read.
    #[serde(default)]
    pub warehouse: WarehouseConfig,
    /// Reports beside the built-in ones, or in their place, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reports: BTreeMap<String, ReportConfig>,
    /// The key of masks.
    #[serde(default)]
    pub masking: MaskingConfig,
    /// What is different for single tables, by `schema.name`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, TableConfig>,
}

/// `[source]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// `postgres://role[:password]@host[:port]/database`, or with a Unix socket
    /// `postgres://role@/database?host=/run/postgresql`. The one key without a default.
    ///
    /// Give the server that takes the writes, and no pooler between: a pooler does not pass replication on.
    pub url: SourceUrl,
    /// The role's password; it goes before one in the URL.
    ///
    /// A file is better: neither `ps` nor a backup of the configuration shows it.
    #[serde(default, with = "secret", skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretString>,
    /// A file whose content is the password; a line break at its end does not count.
    ///
    /// Set it wherever the role has a password. It is read at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// How much its connections have to be protected. Without it `verify-full`, and `prefer` towards this machine itself. It
    /// may stand in the URL instead.
    ///
    /// Lower it only where the server has no certificate that can be verified; `prefer` alone goes on without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslmode: Option<SslMode>,
    /// A file of certificates in PEM form whose signature is trusted; the system's roots if it is absent, or `system`.
    ///
    /// Set it where the server's certificate is signed by an authority of your own, or of your provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<PathBuf>,
    /// A file with the client's certificate.
    ///
    /// Set it, and `sslkey`, where the server asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<PathBuf>,
    /// A file with its private key.
    ///
    /// Set it together with `sslcert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<PathBuf>,
    /// Whether the password's exchange is bound to the server's certificate; `prefer` if it is absent.
    ///
    /// Set `"require"` where the server always offers it; `"disable"` behind a proxy that ends TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_binding: Option<ChannelBinding>,
    /// The replication slot; created when it is absent. One slot feeds one ClickHouse database.
    ///
    /// Change it where several pipelines read one PostgreSQL, before the first start. Another name is another pipeline:
    /// give it a ClickHouse database of its own, and drop a slot that nobody reads any more, or it keeps WAL for ever.
    #[serde(default = "walhouse")]
    pub slot: String,
    /// Whether standbys keep the slot, so that it is there after a promotion: PostgreSQL 17 and later, whose settings have
    /// to go along. A slot that is there already becomes such a one at the next start, and stays one without this.
    ///
    /// Set it where a standby takes over in a planned switchover: [postgresql.md](postgresql.md#failover) has the rest. A
    /// backlog is streamed then, since copies of the slot, by which walhouse catches up, would not wait for the standbys.
    #[serde(default)]
    pub failover: bool,
    /// The publication; created when it is absent.
    ///
    /// Change it together with `slot`, or to use one that an owner of the tables has made.
    #[serde(default = "walhouse")]
    pub publication: String,
    /// Tables and partition roots that are replicated, as patterns over `schema.table`; leaves of partitions are not
    /// named.
    ///
    /// Narrow it to what is queried. A table that matches later is taken up within seconds; one that matches no more
    /// stays in ClickHouse as it is.
    #[serde(default = "public", deserialize_with = "tables::list")]
    pub tables: Vec<Glob>,
    /// Tables that are not, although `tables` matches them.
    ///
    /// Name here what is large, changes all the time and is queried by nobody: queues, sessions, logs.
    #[serde(default, deserialize_with = "tables::list")]
    pub exclude: Vec<Glob>,
    /// Sessions that decode ahead when the slot is far behind; 0 always streams. Without it as many as this machine has
    /// cores, up to 4.
    ///
    /// Each takes a core of PostgreSQL, a connection, a temporary slot of `max_replication_slots`, and disk for what it
    /// has decoded. Lower it where PostgreSQL has nothing to spare; raise it where PostgreSQL has many idle cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up_sessions: Option<usize>,
    /// So much WAL has to lie ahead before they are of use; at least `catch_up_window`.
    ///
    /// Raise it if short peaks should be streamed and leave PostgreSQL's other cores alone.
    #[serde(default = "catch_up_lag")]
    pub catch_up_lag: ByteSize,
    /// The least WAL that one of them decodes in one statement; up to eight times as much where that saves decoding
    /// some of it again.
    ///
    /// Lower it where PostgreSQL has little room for temporary files; larger windows decode less twice.
    #[serde(default = "catch_up_window")]
    pub catch_up_window: ByteSize,
    /// How long such a statement may take; a window that takes longer is streamed.
    ///
    /// Raise it where `streaming, not catching up` names `too_much` again and again. It holds back vacuum for as long.
    #[serde(default = "catch_up_timeout")]
    pub catch_up_timeout: Timespan,
    /// So much WAL before the checkpoint is kept by PostgreSQL, to be delivered again by `walhouse replay`; 0 keeps
    /// none.
    ///
    /// Set it to the WAL of the time in which damage in ClickHouse would be noticed. It takes that room on PostgreSQL's
    /// disk and of `max_slot_wal_keep_size`, and a few seconds of decoding for each GiB at every start.
    #[serde(default = "nothing")]
    pub replay_window: ByteSize,
    /// The initial copy.
    #[serde(default)]
    pub snapshot: SnapshotConfig,
    /// Schema and name of the outbox table, from `[queue]`: it is published, and not replicated.
    #[serde(skip)]
    pub outbox: Option<(String, String)>,
}

/// `[source.snapshot]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// Chunks of the initial copy that are read at once; each has a connection.
    ///
    /// Raise it for a faster copy if PostgreSQL has cores and disk to spare; 1 is gentlest.
    pub workers: usize,
}

/// `[clickhouse]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClickHouseConfig {
    /// The HTTP interface, without credentials and parameters.
    ///
    /// Give the server's own address, or that of a proxy that always leads to the same server.
    pub url: String,
    /// The database that holds the tables and walhouse's own state; created when it is absent.
    ///
    /// Change it to copy everything anew beside what is there, or to have several pipelines on one server.
    pub database: String,
    /// The user.
    ///
    /// Give walhouse a user of its own, with the grants that the README lists.
    pub user: String,
    /// The user's password, from whichever key gave it.
    ///
    /// A file is better: neither `ps` nor a backup of the configuration shows it.
    #[serde(with = "secret", skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretString>,
    /// A file whose content is the password; a line break at its end does not count.
    ///
    /// Set it wherever the user has a password. It is read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// How much its connections have to be protected over https; `verify-full` if it is absent.
    ///
    /// Lower it only where the server has no certificate that can be verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslmode: Option<SslMode>,
    /// A file of certificates in PEM form whose signature is trusted; the system's roots if it is absent, or `system`.
    ///
    /// Set it where the server's certificate is signed by an authority of your own, or of your provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<PathBuf>,
    /// A file with the client's certificate.
    ///
    /// Set it, and `sslkey`, where the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<PathBuf>,
    /// A file with its private key.
    ///
    /// Set it together with `sslcert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<NotYet>,
}

/// More sessions than this have to be asked for: the server has other things to do.
const DEFAULT_SESSIONS: usize = 4;

impl Config {
    /// The defaults, for one source.
    pub fn new(url: SourceUrl) -> Self {
        Self {
            source: SourceConfig::new(url),
            clickhouse: ClickHouseConfig::default(),
            batch: BatchConfig::default(),
            memory: MemoryConfig::default(),
            http: HttpConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            tracing: TracingConfig::default(),
            queue: None,
            workers: WorkersConfig::default(),
            objects: ObjectsConfig::default(),
            operation: OperationConfig::default(),
            warehouse: WarehouseConfig::default(),
            reports: BTreeMap::new(),
            masking: MaskingConfig::default(),
            tables: BTreeMap::new(),
        }
    }

    /// The effective configuration as TOML, without secrets.
    pub fn redacted_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// What is said of one table.
    pub fn table_options(&self, schema: &str, name: &str) -> TableOptions {
        TableOptions {
            table: self.tables.get(&format!("{schema}.{name}")).cloned().unwrap_or_default(),
            unrepresentable: self.batch.unrepresentable,
            salt: self.masking.salt.clone(),
        }
    }

    /// The names of tables for which options are given and that are none of `present`, which are given
    /// as `schema.name`.
    pub fn without_table(&self, present: impl Iterator<Item = String>) -> Vec<&str> {
        let present: HashSet<String> = present.collect();
        self.tables.keys().filter(|name| !present.contains(*name)).map(String::as_str).collect()
    }

    /// The first key whose value is out of bounds, and why.
    fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        slot_name(&self.source.slot).map_err(at("source.slot"))?;
        identifier(&self.source.publication).map_err(at("source.publication"))?;
        if self.source.tables.is_empty() {
            let why = "the list is empty; name what to replicate, such as \"public.*\"";
            return Err(at("source.tables")(why.to_owned()));
        }
        self.source.check_catch_up()?;
        within(self.source.snapshot.workers, 1, 64).map_err(at("source.snapshot.workers"))?;
        http_url(&self.clickhouse.url).map_err(at("clickhouse.url"))?;
        self.clickhouse.check_tls().map_err(|(key, why)| (Cow::from(format!("clickhouse.{key}")), why))?;
        database_name(&self.clickhouse.database).map_err(at("clickhouse.database"))?;
        self.batch.check(&self.memory)?;
        self.log.check()?;
        self.http.check()?;
        self.tracing.check()?;
        self.metrics.check()?;
        self.queue.as_ref().map_or(Ok(()), QueueConfig::check)?;
        self.workers.check()?;
        self.objects.check()?;
        self.operation.check()?;
        reports::check(&self.reports)?;
        self.check_tables()
    }

    fn check_tables(&self) -> Result<(), (Cow<'static, str>, String)> {
        let filter = self.source.table_filter();
        for (name, table) in &self.tables {
            let path = |key: &str| Cow::from(format!("tables.\"{name}\"{key}"));
            let mut halves = name.match_indices('.').map(|(dot, _)| (&name[..dot], &name[dot + 1..]));
            if halves.clone().next().is_none_or(|(schema, table)| schema == "*" || table == "*") {
                let why = "it is not the name of one table; give its schema, a dot and its name, without a pattern";
                return Err((path(""), why.to_owned()));
            }
            if !halves.any(|(schema, table)| filter.matches(schema, table)) {
                let why = "source.tables and source.exclude do not let this table in, so its options would do nothing";
                return Err((path(""), why.to_owned()));
            }
            table.check().map_err(|(key, why)| (path(&format!(".{key}")), why))?;
            if table.publish && self.queue.is_none() {
                let why = "its changes are to go to data-sync-queue, and there is no [queue]; add that section, or remove this";
                return Err((path(".publish"), why.to_owned()));
            }
        }
        Ok(())
    }
}

impl SourceConfig {
    /// The defaults, for one source.
    pub fn new(url: SourceUrl) -> Self {
        Self {
            url,
            password: None,
            password_file: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            channel_binding: None,
            slot: walhouse(),
            failover: false,
            publication: walhouse(),
            tables: public(),
            exclude: Vec::new(),
            catch_up_sessions: None,
            catch_up_lag: catch_up_lag(),
            catch_up_window: catch_up_window(),
            catch_up_timeout: catch_up_timeout(),
            replay_window: nothing(),
            snapshot: SnapshotConfig::default(),
            outbox: None,
        }
    }

    /// How many sessions catch up. Unless it is configured, as many as this machine has cores, up to four.
    pub fn sessions(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.catch_up_sessions.unwrap_or_else(|| cores().min(DEFAULT_SESSIONS))
    }

    fn check_catch_up(&self) -> Result<(), (Cow<'static, str>, String)> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        within(self.catch_up_sessions.unwrap_or_default(), 0, 32).map_err(at("source.catch_up_sessions"))?;
        let (least, most) = (ByteSize(64 << 10), ByteSize::mib(4096));
        within(self.catch_up_window, least, most).map_err(at("source.catch_up_window"))?;
        // Otherwise it would begin again as soon as it has ended.
        within(self.catch_up_lag, self.catch_up_window, ByteSize(1 << 50)).map_err(at("source.catch_up_lag"))?;
        within(self.replay_window, ByteSize(0), ByteSize(1 << 50)).map_err(at("source.replay_window"))?;
        let (shortest, longest) = (Timespan(Duration::from_millis(100)), Timespan(Duration::from_secs(3600)));
        within(self.catch_up_timeout, shortest, longest).map_err(at("source.catch_up_timeout"))
    }

    /// Which tables are meant.
    pub fn table_filter(&self) -> TableFilter {
        TableFilter::new(self.tables.clone(), self.exclude.clone()).without(self.outbox.clone())
    }
}

fn catch_up_lag() -> ByteSize {
    ByteSize::mib(64)
}

fn nothing() -> ByteSize {
    ByteSize(0)
}

fn catch_up_window() -> ByteSize {
    ByteSize::mib(32)
}

fn catch_up_timeout() -> Timespan {
    Timespan(Duration::from_secs(60))
}

fn walhouse() -> String {
    "walhouse".to_owned()
}

fn public() -> Vec<Glob> {
    vec!["public.*".parse().expect("the default is a pattern")]
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { workers: 2 }
    }
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        Self {
            url: "http://localhost:8123".to_owned(),
            database: "analytics".to_owned(),
            user: "default".to_owned(),
            password: None,
            password_file: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            cluster: None,
        }
    }
}

#[cfg(test)]
mod page;
#[cfg(test)]
mod tests;
