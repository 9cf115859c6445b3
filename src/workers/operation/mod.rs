//! async-operations-queue: reports and exports become objects.
//!
//! A request names a report; ClickHouse runs that, with the request's parameters bound by itself and the event's own merchant
//! among them, and what it sends goes on into the object store as it comes. The statement can change nothing and costs no more than
//! `[operation]` allows. `async_operations` says how far it has come.
//!
//! A request is handled at least once, and its outcome is there once: the object's key is derived from the event, an object
//! appears whole or not at all, and what has succeeded is not done again. Of each export the audit log hears, before the
//! request is told to have succeeded, by an event whose id is derived as well.

mod formulas;
mod notice;
mod record;
mod request;
mod rows;

use crate::{
    clickhouse::{
        client::{code, describe, kind},
        presence::presence,
    },
    config::{Config, CsvFormulas, OperationConfig, ReportConfig, reports},
    queue::{
        client::Sqs,
        consumer::{Event, HandleError, Handler},
    },
    retry::Kind,
    store::{Store, StoreError},
};
use clickhouse::{Client, error::Error, query::BytesCursor};
use formulas::Escaping;
use futures_util::{FutureExt, future::BoxFuture};
use notice::Outcome;
use record::{Record, Step};
use request::{Format, Plan, Request};
use rows::Rows;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

/// How often the record tells how far a request has come.
const PROGRESS: Duration = Duration::from_secs(3);
/// How long a note may take that is not needed for what it notes.
const ASIDE: Duration = Duration::from_secs(2);
/// ClickHouse's codes for a result that is larger than it may be.
const TOO_LARGE: [u32; 3] = [158, 307, 396];
/// UNKNOWN_TABLE, UNKNOWN_DATABASE: what a report reads may be about to be made.
const MISSING: [u32; 2] = [60, 81];
/// Of those that time may mend, the ones that this very report may have caused: TIMEOUT_EXCEEDED, TOO_SLOW, MEMORY_LIMIT_EXCEEDED
/// and QUERY_WAS_CANCELLED. It uses up its tries.
const OF_THE_REPORT: [u32; 4] = [159, 160, 241, 394];

/// Runs reports and exports.
pub struct Operation {
    client: Client,
    sqs: Arc<Sqs>,
    config: Arc<Config>,
    reports: BTreeMap<String, ReportConfig>,
    /// What one request may take, all in all.
    limit: Duration,
    /// Opened with the first request: a process that never has one needs no place for objects.
    store: OnceCell<Store>,
    wants_store: AtomicBool,
}

/// A result that is there.
struct Done {
    rows: u64,
    bytes: u64,
    location: String,
}

impl Operation {
    /// A handler that reads with `client`, whose database is chosen; it has `timeout` for a request.
    pub fn new(client: Client, sqs: Arc<Sqs>, config: Arc<Config>, timeout: Duration) -> Self {
        Self {
            client,
            sqs,
            reports: reports(&config.reports),
            config,
            // What is left is for telling how it ended.
            limit: timeout * 9 / 10,
            store: OnceCell::new(),
            wants_store: AtomicBool::new(false),
        }
    }

    async fn answer(&self, event: &Event) -> Result<(), HandleError> {
        let request = Request::read(event)?;
        let Some(mut record) = Record::begin(&self.client, &request, event).await? else {
            tracing::info!(operation = %request.id, "a request has come again that was answered already");
            return Ok(());
        };
        let answered = match request.plan(&self.reports) {
            Ok(plan) => self.within_limit(&request, &plan, &mut record).await,
            Err(why) => Err(HandleError::Definite(why)),
        };
        match answered {
            Ok(done) => self.succeeded(event, &request, &mut record, &done).await,
            Err(error) => Err(self.failed(event, &request, &mut record, error).await),
        }
    }

    async fn within_limit(&self, request: &Request, plan: &Plan, record: &mut Record) -> Result<Done, HandleError> {
        match timeout(self.limit, self.run(request, plan, record)).await {
            Ok(answered) => answered,
            Err(_) => {
                let seconds = self.limit.as_secs_f64();
                Err(self.perhaps_away(format!("{} was not done within {seconds} s", request.report)).await)
            }
        }
    }

    /// Runs a report, and writes what comes of it.
    async fn run(&self, request: &Request, plan: &Plan, record: &mut Record) -> Result<Done, HandleError> {
        let store = self.store().await?;
        record.note(&self.client, Step::Running { rows: 0, bytes: 0 }).await?;
        tracing::info!(operation = %request.id, report = request.report, "a report runs");
        let mut result = self.begin(plan, &request.comment)?;
        let mut object = match store.write(&plan.key, plan.format.content_type()).await {
            Ok(object) => object,
            Err(error) => return Err(self.store_failed(&error).await),
        };
        let (mut rows, mut bytes) = (Rows::new(plan.format), 0);
        let mut escaping = self.escapes(plan).then(Escaping::default);
        let mut tick = interval_at(Instant::now() + PROGRESS, PROGRESS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let chunk = tokio::select! {
                chunk = result.next() => chunk,
                _ = tick.tick() => {
                    let step = Step::Running { rows: rows.count(), bytes };
                    // The next one says it as well.
                    let _ = timeout(ASIDE, record.note(&self.client, step)).await;
                    continue;
                }
            };
            let Some(chunk) = (match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Err(self.clickhouse_failed(request, &error, bytes > 0).await),
            }) else {
                break;
            };
            let chunk = match &mut escaping {
                Some(escaping) => escaping.take(&chunk),
                None => chunk,
            };
            bytes += chunk.len() as u64;
            if bytes > self.config.operation.max_bytes.0 {
                return Err(HandleError::Definite(too_large(request, &self.config.operation)));
            }
            rows.take(&chunk);
            if let Err(error) = object.put(chunk).await {
                return Err(self.store_failed(&error).await);
            }
        }
        match object.finish().await {
            Ok(()) => Ok(Done { rows: rows.count(), bytes, location: store.location(&plan.key) }),
            Err(error) => Err(self.store_failed(&error).await),
        }
    }

    fn escapes(&self, plan: &Plan) -> bool {
        let formulas = plan.csv_formulas.unwrap_or(self.config.operation.csv_formulas);
        plan.format == Format::Csv && formulas == CsvFormulas::Escape
    }

    /// Has ClickHouse begin; it can read and do nothing else, and ends when nobody listens any more.
    fn begin(&self, plan: &Plan, comment: &str) -> Result<BytesCursor, HandleError> {
        let limits = &self.config.operation;
        let seconds = limits.max_time(self.limit).as_secs().max(1).to_string();
        let mut query = self.client.query_raw(&plan.sql);
        for (name, value) in &plan.values {
            query = query.param(name, value);
        }
        let settings = [
            ("readonly", "1"),
            ("cancel_http_readonly_queries_on_client_close", "1"),
            ("max_result_rows", &limits.max_rows.to_string()),
            ("max_result_bytes", &limits.max_bytes.0.to_string()),
            ("result_overflow_mode", "throw"),
            ("max_memory_usage", &limits.max_memory.0.to_string()),
            ("max_execution_time", &seconds),
            ("timeout_overflow_mode", "throw"),
            ("date_time_output_format", "iso"),
            ("output_format_decimal_trailing_zeros", "1"),
            // An error in the middle is to be one, and not a row that says so.
            ("http_write_exception_in_output_format", "0"),
            ("log_comment", comment),
        ];
        let query = settings.into_iter().fold(query, |query, (name, value)| query.with_setting(name, value));
        query.fetch_bytes(plan.format.of_clickhouse()).map_err(|error| HandleError::Definite(describe(&error)))
    }

    async fn succeeded(
        &self,
        event: &Event,
        request: &Request,
        record: &mut Record,
        done: &Done,
    ) -> Result<(), HandleError> {
        if request.is_export() {
            let outcome = Outcome::Success { location: &done.location, rows: done.rows, bytes: done.bytes };
            if let Err(error) = notice::send(&self.sqs, event, request, outcome).await {
                let _ = timeout(ASIDE, record.note(&self.client, Step::Again { error: &error.to_string() })).await;
                return Err(error);
            }
        }
        let Done { rows, bytes, location } = done;
        record.note(&self.client, Step::Succeeded { rows: *rows, bytes: *bytes, location }).await?;
        tracing::info!(operation = %request.id, report = request.report, rows, bytes, location, "a report is there");
        Ok(())
    }

    /// Tells how a request failed, and returns what its message is to hear.
    async fn failed(&self, event: &Event, request: &Request, record: &mut Record, error: HandleError) -> HandleError {
        let why = error.to_string();
        let for_good = match &error {
            HandleError::Definite(_) => true,
            HandleError::Transient(_) => event.is_last,
            HandleError::Unavailable(_) => false,
        };
        if !for_good {
            let _ = timeout(ASIDE, record.note(&self.client, Step::Again { error: &why })).await;
            return error;
        }
        if request.is_export()
            && let Err(unsent) = notice::send(&self.sqs, event, request, Outcome::Failure { why: &why }).await
        {
            if !event.is_last {
                return unsent;
            }
            tracing::error!(operation = %request.id, %unsent, "the audit log does not hear of an export that failed");
        }
        match record.note(&self.client, Step::Failed { error: &why }).await {
            Ok(()) => error,
            // It would be running for ever.
            Err(away) => away,
        }
    }

    async fn store(&self) -> Result<&Store, HandleError> {
        self.wants_store.store(true, Ordering::Relaxed);
        let open = async || Store::new(&self.config.objects);
        self.store.get_or_try_init(open).await.map_err(|error| HandleError::Unavailable(error.to_string()))
    }

    async fn store_failed(&self, error: &StoreError) -> HandleError {
        self.perhaps_away(error.to_string()).await
    }

    /// What an error of ClickHouse means for a request.
    async fn clickhouse_failed(&self, request: &Request, error: &Error, begun: bool) -> HandleError {
        let (code, report) = (code(error), &request.report);
        presence().failed("run a report", error);
        match code {
            Some(code) if TOO_LARGE.contains(&code) => {
                HandleError::Definite(too_large(request, &self.config.operation))
            }
            Some(code) if MISSING.contains(&code) => HandleError::Transient(format!(
                "ClickHouse lacks a table that {report} reads: the built-in reports need [warehouse] enabled = true and the \
                 tables below it ({})",
                describe(error)
            )),
            Some(code) if OF_THE_REPORT.contains(&code) => {
                HandleError::Transient(format!("{report}: {}: see [operation] for what it may cost", describe(error)))
            }
            _ if kind(error) == Kind::Definite => HandleError::Definite(format!("{report}: {}", describe(error))),
            _ if begun => self.perhaps_away(describe(error)).await,
            _ => HandleError::Unavailable(describe(error)),
        }
    }

    /// Something did not work: because of this request, unless what it depends on is away.
    async fn perhaps_away(&self, why: String) -> HandleError {
        match timeout(ASIDE, self.ready()).await {
            Ok(Ok(())) => HandleError::Transient(why),
            Ok(Err(why)) => HandleError::Unavailable(why),
            Err(_) => HandleError::Unavailable("ClickHouse or the object store does not answer".to_owned()),
        }
    }
}

fn too_large(request: &Request, limits: &OperationConfig) -> String {
    format!(
        "the result of {} is larger than {} rows or {}: ask for less, or raise operation.max_rows and max_bytes",
        request.report, limits.max_rows, limits.max_bytes
    )
}

impl Handler for Operation {
    fn name(&self) -> &'static str {
        "operation"
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            // The pipeline's first start makes it, in this process or another one.
            match self.client.query("EXISTS TABLE async_operations").fetch_one::<u8>().await {
                Ok(1) => {}
                Ok(_) => return Err("ClickHouse has no table async_operations yet".to_owned()),
                Err(error) => return Err(describe(&error)),
            }
            match self.wants_store.load(Ordering::Relaxed) {
                true => self.store().await.map_err(|error| error.to_string())?.ready().await,
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn is_told(&self) -> bool {
        presence().is_away()
    }

    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandleError>> {
        self.answer(event).boxed()
    }
}
