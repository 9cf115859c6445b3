//! Logs and metrics: how they are set up, and the one list of what is measured.
//!
//! No row value and no secret ever goes into either. Labels are tables and error classes, so
//! their number is bounded by the source's tables.

use std::io::{self, IsTerminal};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, registry::LookupSpan};

use crate::config::{LogConfig, LogFormat};

/// Sends the log to standard error, as `[log]` has it. Does nothing if there is a log already.
///
/// Only what walhouse itself tells is in it, at whatever level: libraries quote statements and
/// their parameters at `debug`, and there may be values of rows among them.
pub fn logging(config: &LogConfig) {
    // The configuration was checked; the fallback is for callers that made their own.
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let own = filter_fn(|event| event.target().split("::").next() == Some(env!("CARGO_CRATE_NAME")));
    let log = tracing_subscriber::registry().with(filter).with(own).with(lines(config.format));
    // Not `try_init`, which would also gather what libraries tell through the `log` crate.
    let _ = tracing::subscriber::set_global_default(log);
}

fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Nobody may be reading any more: a line that can not be written is lost, and that is all.
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false).with_ansi(colours);
    match format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// The names of all metrics.
pub mod names {
    /// Bytes read from the slot.
    pub const SOURCE_BYTES: &str = "walhouse_source_bytes_total";
    /// The position up to which the WAL was read for the slot, as far as it is known.
    pub const SOURCE_POSITION: &str = "walhouse_source_position_bytes";
    /// Which of the two readers is at work: 1 for it, 0 for the other.
    pub const READER: &str = "walhouse_reader";
    /// Windows of WAL that were read to their end by the catch-up reader.
    pub const CATCH_UP_WINDOWS: &str = "walhouse_catch_up_windows_total";
    /// Times that the catch-up reader left the rest to the stream, by reason.
    pub const CATCH_UP_GIVEN_UP: &str = "walhouse_catch_up_given_up_total";
    /// The server's WAL position minus the stored checkpoint.
    pub const LAG_BYTES: &str = "walhouse_source_lag_bytes";
    /// The age of the oldest commit that is received and not yet durable; 0 when there is none.
    pub const LAG_SECONDS: &str = "walhouse_lag_seconds";
    /// The stored checkpoint.
    pub const CHECKPOINT: &str = "walhouse_checkpoint_position_bytes";
    /// Changes received, by table.
    pub const ROWS_RECEIVED: &str = "walhouse_rows_received_total";
    /// Rows that ClickHouse confirmed, by table.
    pub const ROWS_WRITTEN: &str = "walhouse_rows_written_total";
    /// Rows that the initial copy wrote, by table.
    pub const COPY_ROWS: &str = "walhouse_copy_rows_total";
    /// The share of the initial copy that is done, 0 to 1, by table.
    pub const COPY_PROGRESS: &str = "walhouse_copy_progress_ratio";
    /// Tables whose initial copy is not complete.
    pub const COPY_PENDING: &str = "walhouse_copy_pending_tables";
    /// Tables that are stopped.
    pub const TABLES_STOPPED: &str = "walhouse_tables_stopped";
    /// What an operator has paused, by what: 1 for `pipeline` and for a worker (`audit`, `operation`, `data-sync`), and how many
    /// `tables`.
    pub const PAUSED: &str = "walhouse_paused";
    /// Changes of shape, by table and by whether the target was altered or the table copied anew.
    pub const SHAPE_CHANGES: &str = "walhouse_shape_changes_total";
    /// Messages of the DDL triggers, or that seemed to be theirs, by whether they were understood.
    pub const DDL_MESSAGES: &str = "walhouse_ddl_messages_total";
    /// Rows that went to the dead letters, by table and kind of reason.
    pub const DEAD_LETTERS: &str = "walhouse_dead_letters_total";
    /// Events of applications that came to be sent, by queue.
    pub const EVENTS: &str = "walhouse_events_total";
    /// Events that a queue has confirmed, by queue; one that is sent again after a restart counts again.
    pub const EVENTS_SENT: &str = "walhouse_events_sent_total";
    /// Messages that would be events, and stand outside of transactions: they are not published.
    pub const EVENTS_OUTSIDE: &str = "walhouse_events_outside_transactions_total";
    /// Whether events wait in the WAL because they came faster than they were sent: 1 while they do.
    pub const EVENTS_BEHIND: &str = "walhouse_events_behind";
    /// From an event's commit until its queue has confirmed it, in seconds.
    pub const QUEUE_LATENCY: &str = "walhouse_queue_latency_seconds";
    /// Requests to SQS that failed, by kind.
    pub const QUEUE_ERRORS: &str = "walhouse_queue_errors_total";
    /// Requests of workers for messages that failed, by worker and kind.
    pub const TAKE_ERRORS: &str = "walhouse_worker_take_errors_total";
    /// Messages that came to an end at a worker, by worker and outcome: done, known (an event of its id was done before), again,
    /// dead, lost or released.
    pub const EVENTS_HANDLED: &str = "walhouse_events_handled_total";
    /// How long a worker had a message in hand, in seconds.
    pub const HANDLER_SECONDS: &str = "walhouse_handler_seconds";
    /// Whether a worker waits for what it depends on: 1 while it does.
    pub const WORKER_WAITS: &str = "walhouse_worker_waits";
    /// How long inserts took, in seconds.
    pub const INSERT_SECONDS: &str = "walhouse_insert_seconds";
    /// Attempts to insert that failed, by kind.
    pub const INSERT_ERRORS: &str = "walhouse_insert_errors_total";
    /// Rows whose unchanged TOAST had to be looked up, by where it was found.
    pub const TOAST_LOOKUPS: &str = "walhouse_toast_lookups_total";
    /// Values that are not the source's, since their columns could not hold those, by table and policy.
    pub const VALUES_REPLACED: &str = "walhouse_values_replaced_total";
    /// Times that the connection to the source was made anew.
    pub const RECONNECTS: &str = "walhouse_reconnects_total";
    /// Seconds from a commit at the source until it was durable in ClickHouse.
    pub const LATENCY: &str = "walhouse_commit_to_durable_seconds";
    /// Bytes of changes and blocks in flight.
    pub const MEMORY: &str = "walhouse_memory_in_flight_bytes";
    /// 1, with the version as a label.
    pub const BUILD_INFO: &str = "walhouse_build_info";
}

/// Buckets of insert durations, in seconds.
const INSERT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets of commit-to-durable latencies, in seconds.
const LATENCY_BUCKETS: &[f64] = &[0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// Installs the process's metrics, and returns what renders them.
///
/// # Errors
/// If a recorder is installed already.
pub fn metrics() -> Result<PrometheusHandle, Box<dyn std::error::Error + Send + Sync>> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(names::INSERT_SECONDS.into()), INSERT_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(names::LATENCY.into()), LATENCY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(names::HANDLER_SECONDS.into()), LATENCY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(names::QUEUE_LATENCY.into()), LATENCY_BUCKETS)?
        .install_recorder()?;
    describe();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

fn describe() {
    use metrics::{Unit, describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    counter!(names::SOURCE_BYTES, Unit::Bytes, "Bytes read from the replication slot");
    gauge!(names::SOURCE_POSITION, Unit::Bytes, "WAL position up to which it was read for the slot");
    gauge!(names::READER, "1 for the reader that is at work, streaming or catch_up, 0 for the other");
    counter!(names::CATCH_UP_WINDOWS, "Windows of WAL read by the catch-up reader");
    counter!(names::CATCH_UP_GIVEN_UP, "Times that the catch-up reader left the rest to the stream, by reason");
    gauge!(names::LAG_BYTES, Unit::Bytes, "WAL of the source that is not yet durable in ClickHouse");
    gauge!(names::LAG_SECONDS, Unit::Seconds, "Age of the oldest commit received and not yet durable");
    gauge!(names::CHECKPOINT, Unit::Bytes, "WAL position of the stored checkpoint");
    counter!(names::ROWS_RECEIVED, "Changes received from the source, by table");
    counter!(names::ROWS_WRITTEN, "Rows that ClickHouse confirmed, by table");
    counter!(names::COPY_ROWS, "Rows written by the initial copy, by table");
    gauge!(names::COPY_PROGRESS, "Share of the initial copy that is done, by table");
    gauge!(names::COPY_PENDING, "Tables whose initial copy is not complete");
    gauge!(names::TABLES_STOPPED, "Tables that are stopped");
    gauge!(names::PAUSED, "1 for the pipeline or a worker that is paused, and how many tables are, by what");
    counter!(names::SHAPE_CHANGES, "Changes of shape, by table and outcome: altered, or copied anew");
    counter!(names::DDL_MESSAGES, "Messages of the DDL triggers, or like theirs, by outcome: understood, or refused");
    counter!(names::DEAD_LETTERS, "Rows that went to the dead letters, by table and kind of reason");
    counter!(names::EVENTS, "Events of applications that came to be sent, by queue");
    counter!(names::EVENTS_SENT, "Events that a queue has confirmed, by queue");
    counter!(names::EVENTS_OUTSIDE, "Messages that would be events and stand outside of transactions");
    gauge!(names::EVENTS_BEHIND, "1 while events wait in the WAL because they came faster than they were sent");
    histogram!(names::QUEUE_LATENCY, Unit::Seconds, "Time from an event's commit until its queue has confirmed it");
    counter!(names::QUEUE_ERRORS, "Requests to SQS that failed, by kind");
    counter!(names::TAKE_ERRORS, "Requests for messages that failed, by worker and kind");
    counter!(names::EVENTS_HANDLED, "Messages that came to an end at a worker, by worker and outcome");
    histogram!(names::HANDLER_SECONDS, Unit::Seconds, "Time that a worker had a message in hand");
    gauge!(names::WORKER_WAITS, "1 while a worker waits for what it depends on");
    histogram!(names::INSERT_SECONDS, Unit::Seconds, "Duration of attempts to insert a block");
    counter!(names::INSERT_ERRORS, "Attempts to insert that failed, by kind");
    counter!(names::TOAST_LOOKUPS, "Rows whose unchanged TOAST was looked up, by where it was found");
    counter!(names::VALUES_REPLACED, "Values replaced because their columns can not hold them, by table and policy");
    counter!(names::RECONNECTS, "Times that the connection to the source was made anew");
    histogram!(names::LATENCY, Unit::Seconds, "Time from commit at the source to durable in ClickHouse");
    gauge!(names::MEMORY, Unit::Bytes, "Changes and blocks in flight");
    gauge!(names::BUILD_INFO, "1, labelled with the version");
}
