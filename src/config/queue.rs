//! `[queue]` and `[workers]`: where events go, and who handles them.

use super::{
    value::{ByteSize, Timespan},
    within,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Cow, time::Duration};

/// `[queue]`. Without it there is no queue lane, no worker, and no call to AWS.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Where SQS is; AWS if it is absent. With an emulator's address, queues that are missing are created.
    ///
    /// Set it for an emulator, or for an endpoint in a VPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_url: Option<String>,
    /// The region; `AWS_REGION` and what else AWS's clients look at, if it is absent.
    ///
    /// Set it where the environment does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The table into which applications write events, as `schema.name`. It is published, and not replicated.
    ///
    /// Change it where the outbox has another name.
    pub outbox_table: String,
    /// What the queues' names begin with, so that several pipelines can share an account: up to 48 letters, digits,
    /// hyphens and underscores.
    ///
    /// Set it before the queues are made; under another prefix there are other queues.
    pub prefix: String,
    /// Whether the queues are FIFO queues: the events of one aggregate in their order, and each of them once within
    /// five minutes.
    ///
    /// Set it where the order matters to a consumer, before the queues are made. FIFO queues take fewer messages a
    /// second.
    pub fifo: bool,
    /// The service that events are from if they do not say so themselves; the source's database if it is absent. 1 to
    /// 256 characters.
    ///
    /// Set it where the database's name says nothing to those who read events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_service: Option<String>,
    /// Events in memory that wait to be sent; beyond it they wait in PostgreSQL's WAL.
    ///
    /// Raise it only if events come in large bursts and SQS is far away.
    pub budget: ByteSize,
}

/// `[workers]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersConfig {
    /// Whether this process handles messages. Another one with the same configuration may do so instead.
    ///
    /// Switch it off where workers run as a process of their own, or in another program.
    pub enabled: bool,
    /// The largest payload that is taken from the object store; a larger one is a dead letter. It is in memory about
    /// three times while it is handled.
    ///
    /// Lower it where memory is short, raise it where events are larger.
    pub max_payload: ByteSize,
    /// audit-log-queue.
    #[serde(deserialize_with = "audit")]
    pub audit: WorkerConfig,
    /// async-operations-queue.
    #[serde(deserialize_with = "operation")]
    pub operation: WorkerConfig,
    /// data-sync-queue.
    #[serde(deserialize_with = "data_sync")]
    pub data_sync: WorkerConfig,
}

/// How one queue's messages are handled.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerConfig {
    /// Whether this queue's messages are handled.
    ///
    /// Switch it off where a consumer of your own reads the queue.
    pub enabled: bool,
    /// Messages that are handled at once, and so are in memory; each has 1 MiB at most, and large payloads from the
    /// object store come one after the other.
    ///
    /// Raise it if the queue grows and ClickHouse is idle, lower it to spare ClickHouse or memory.
    pub concurrency: usize,
    /// How long the handling of one may take; the event's own limit if it is absent.
    ///
    /// Set it where events give none, or too long a one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Timespan>,
    /// The delay before the first retry; the event's own if it is absent.
    ///
    /// Raise it where what a handler needs is often away for longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_delay: Option<Timespan>,
}

/// The host of a URL.
fn host(url: &str) -> Option<String> {
    let url: axum::http::Uri = url.parse().ok()?;
    url.host().filter(|host| !host.is_empty()).map(str::to_ascii_lowercase)
}

fn endpoint(url: &str) -> Result<(), String> {
    let form =
        "it is not a URL of the form https://sqs.eu-central-1.amazonaws.com, or http://localhost:4566 for an emulator";
    if url.contains(['@', '?']) {
        return Err(format!("{form}, without credentials and parameters"));
    }
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    if is_http && host(url).is_some() { Ok(()) } else { Err(form.to_owned()) }
}

/// SQS takes names of up to 80 characters, of which the longest of ours needs 26 and FIFO five more.
const LONGEST_PREFIX: usize = 48;

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            endpoint_url: None,
            region: None,
            outbox_table: "public.outbox_event".to_owned(),
            prefix: String::new(),
            fifo: false,
            source_service: None,
            budget: ByteSize::mib(8),
        }
    }
}

impl Default for WorkersConfig {
    fn default() -> Self {
        let worker = |concurrency| WorkerConfig { enabled: true, concurrency, timeout: None, retry_delay: None };
        let max_payload = ByteSize::mib(128);
        Self {
            enabled: true,
            max_payload,
            audit: worker(AUDIT),
            operation: worker(OPERATION),
            data_sync: worker(DATA_SYNC),
        }
    }
}

/// What is handled at once unless it is configured: rows that are written together are many, and reports are large.
const AUDIT: usize = 64;
const OPERATION: usize = 2;
const DATA_SYNC: usize = 64;

/// What a section says of a worker.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenWorker {
    enabled: Option<bool>,
    concurrency: Option<usize>,
    timeout: Option<Timespan>,
    retry_delay: Option<Timespan>,
}

fn audit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WorkerConfig, D::Error> {
    worker(deserializer, AUDIT)
}

fn operation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WorkerConfig, D::Error> {
    worker(deserializer, OPERATION)
}

fn data_sync<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WorkerConfig, D::Error> {
    worker(deserializer, DATA_SYNC)
}

/// A section that says something of a worker leaves the rest as it is for that one.
fn worker<'de, D: Deserializer<'de>>(deserializer: D, usual: usize) -> Result<WorkerConfig, D::Error> {
    let GivenWorker { enabled, concurrency, timeout, retry_delay } = GivenWorker::deserialize(deserializer)?;
    Ok(WorkerConfig {
        enabled: enabled.unwrap_or(true),
        concurrency: concurrency.unwrap_or(usual),
        timeout,
        retry_delay,
    })
}

type Refused = (Cow<'static, str>, String);

impl QueueConfig {
    /// Schema and name of the outbox table.
    pub fn outbox(&self) -> (String, String) {
        let (schema, name) = self.outbox_table.split_once('.').unwrap_or(("public", &self.outbox_table));
        (schema.to_owned(), name.to_owned())
    }

    /// Whether the queues are those of an emulator: walhouse makes them itself then, and any credentials will do.
    pub fn is_emulator(&self) -> bool {
        let host = self.endpoint_url.as_ref().and_then(|url| host(url));
        host.is_some_and(|host| {
            ![".amazonaws.com", ".amazonaws.com.cn", ".api.aws"].iter().any(|aws| host.ends_with(aws))
        })
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        if let Some(url) = &self.endpoint_url {
            endpoint(url).map_err(at("queue.endpoint_url"))?;
        }
        let named =
            self.outbox_table.split_once('.').is_some_and(|(schema, name)| !schema.is_empty() && !name.is_empty());
        if !named {
            let why =
                "it is not the name of a table; give its schema, a dot and its name, such as \"public.outbox_event\"";
            return Err(at("queue.outbox_table")(why.to_owned()));
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.prefix.len() > LONGEST_PREFIX || !self.prefix.bytes().all(legal) {
            let why = format!(
                "a queue's name has letters, digits, hyphens and underscores, so the prefix may have these, and up to \
                 {LONGEST_PREFIX} of them"
            );
            return Err(at("queue.prefix")(why));
        }
        if self.source_service.as_deref().is_some_and(|service| service.is_empty() || service.len() > 256) {
            return Err(at("queue.source_service")("give it 1 to 256 characters".to_owned()));
        }
        within(self.budget, ByteSize::mib(2), ByteSize::mib(4096)).map_err(at("queue.budget"))
    }
}

impl WorkersConfig {
    pub(super) fn check(&self) -> Result<(), Refused> {
        within(self.max_payload, ByteSize::mib(1), ByteSize::mib(1024))
            .map_err(|message| (Cow::from("workers.max_payload"), message))?;
        for (name, worker) in [("audit", &self.audit), ("operation", &self.operation), ("data_sync", &self.data_sync)] {
            let at = |key: &str| {
                let path = Cow::from(format!("workers.{name}.{key}"));
                move |message: String| (path, message)
            };
            within(worker.concurrency, 1, 256).map_err(at("concurrency"))?;
            let (shortest, longest) = (Timespan(Duration::from_millis(100)), Timespan(Duration::from_secs(6 * 3600)));
            within(worker.timeout.unwrap_or(shortest), shortest, longest).map_err(at("timeout"))?;
            // What SQS allows a message to be invisible for.
            let longest = Timespan(Duration::from_secs(12 * 3600));
            within(worker.retry_delay.unwrap_or(shortest), Timespan(Duration::ZERO), longest)
                .map_err(at("retry_delay"))?;
        }
        Ok(())
    }
}
