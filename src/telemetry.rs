//! Logs and metrics: how they are set up, and the one list of what is measured.
//!
//! No row value and no secret ever goes into either. Labels have few values, which are known beforehand; only the one that names a
//! table grows with the source, and is bounded by the configuration: [`tables`].

pub mod names;
#[cfg(test)]
mod page;
pub mod recent;
pub mod tables;

use std::{
    io::{self, IsTerminal},
    time::{SystemTime, UNIX_EPOCH},
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, layer::SubscriberExt, registry::LookupSpan};

use crate::config::{Config, LogConfig, LogFormat};

/// Sends the log to standard error, as `[log]` has it. Does nothing if there is a log already.
///
/// Only what walhouse itself tells is in it, at whatever level: libraries quote statements and
/// their parameters at `debug`, and there may be values of rows among them.
pub fn logging(config: &LogConfig) {
    // The configuration was checked; the fallback is for callers that made their own.
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let own = filter_fn(|event| event.target().split("::").next() == Some(env!("CARGO_CRATE_NAME")));
    let log = tracing_subscriber::registry().with(filter).with(own).with(lines(config.format)).with(recent::Keeper);
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

/// Buckets of insert durations, in seconds.
const INSERT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets of latencies, in seconds. A bound of alerts, five minutes, is one of theirs.
const LATENCY_BUCKETS: &[f64] = &[0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];
/// Buckets of how long messages wait, in seconds: from at once to half a day.
const WAIT_BUCKETS: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0];
/// Buckets of rows in a batch.
const ROW_BUCKETS: &[f64] = &[1.0, 10.0, 100.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0, 500_000.0, 1_000_000.0];

/// Installs the process's metrics, and returns what renders them.
///
/// # Errors
/// If a recorder is installed already.
pub fn metrics(config: &Config) -> Result<PrometheusHandle, Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = PrometheusBuilder::new();
    let histograms = names::ALL.iter().filter(|metric| metric.kind == names::Kind::Histogram);
    for metric in histograms {
        builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), buckets(metric.name))?;
    }
    let handle = builder.install_recorder()?;
    tables::at_most(config.metrics.max_tables);
    describe();
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!(names::MEMORY_BUDGET).set(config.memory.budget.as_usize() as f64);
    begin();
    measure_process();
    Ok(handle)
}

/// The upper bounds of a histogram's buckets.
fn buckets(name: &str) -> &'static [f64] {
    match name {
        names::INSERT_SECONDS => INSERT_BUCKETS,
        names::INSERT_ROWS => ROW_BUCKETS,
        names::QUEUE_WAIT => WAIT_BUCKETS,
        _ => LATENCY_BUCKETS,
    }
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    for metric in names::ALL {
        match metric.kind {
            names::Kind::Counter => describe_counter!(metric.name, metric.help),
            names::Kind::Gauge => describe_gauge!(metric.name, metric.help),
            names::Kind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
    metrics_process::Collector::default().describe();
}

/// A counter that first shows itself with what has happened looks to Prometheus as if nothing had. So those whose labels are
/// known are there from the beginning.
fn begin() {
    for name in [names::SOURCE_BYTES, names::RECONNECTS, names::EVENTS_OUTSIDE, names::CATCH_UP_WINDOWS] {
        metrics::counter!(name).increment(0);
    }
    for kind in ["transient", "refused", "halt"] {
        metrics::counter!(names::INSERT_ERRORS, "kind" => kind).increment(0);
    }
    for kind in ["transient", "definite"] {
        metrics::counter!(names::QUEUE_ERRORS, "kind" => kind).increment(0);
    }
    for request in ["write", "read"] {
        metrics::counter!(names::PAYLOAD_ERRORS, "request" => request).increment(0);
    }
}

/// Measures the process itself; to be done every few seconds.
pub fn measure_process() {
    metrics_process::Collector::default().collect();
}

/// A moment as metrics have it: seconds since 1970.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
