//! Traces: how long what one request has caused takes, from its commit to where it ends.
//!
//! A trace joins what has one correlation id, in whatever process it happens: its id is that of the application's own trace
//! where a `traceparent` came along, and is made of the correlation id otherwise. So nobody has to pass anything on for the
//! rows, events and handlers of one request to stand together. There are four kinds of spans:
//! - `commit`: from a transaction's commit until its rows are durable in ClickHouse;
//! - `insert`: an attempt to insert a block, which holds rows of many transactions and so is a trace of its own;
//! - `send`: from an event's commit until its queue has confirmed it;
//! - `process`: a message in the hand of a worker.
//!
//! A span is made when it has ended, and handed to the exporter's own thread, which sends what there is twice a second and
//! drops what is too much: nothing ever waits for a collector. Off, which is the default, it costs a look at one variable.
//! Whether a trace is sent is decided by its id, as other implementations do it, so all parts of one are sent or none.
//!
//! There is no row value in any of it.

use crate::config::TracingConfig;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor},
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How often spans are sent, how many at once, and how many may wait for that.
const EVERY: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 512;
const MAX_WAITING: usize = 8192;
/// How long a collector may take for an answer, and at the end of the process for all of them.
const PATIENCE: Duration = Duration::from_secs(5);
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// How often the same trouble is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

static TRACES: OnceLock<Traces> = OnceLock::new();

/// What the process traces with.
#[derive(Debug)]
struct Traces {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    /// Ids below it are sent, of 2^63.
    threshold: u64,
}

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
#[error("tracing.otlp_endpoint can not be used: {0}")]
pub struct TraceError(String);

/// Begins to trace, if it is configured. Blocks, and so belongs before the runtime.
///
/// # Errors
/// If no client can be made for the endpoint.
pub fn install(config: &TracingConfig) -> Result<(), TraceError> {
    let Some(url) = config.url() else { return Ok(()) };
    let failed = |error: &dyn std::fmt::Display| TraceError(error.to_string());
    // reqwest asks the process for its TLS; ours is the same everywhere. Somebody else may have said so before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().timeout(PATIENCE).build().map_err(|error| failed(&error))?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .build()
        .map_err(|error| failed(&error))?;
    let limits = BatchConfigBuilder::default()
        .with_scheduled_delay(EVERY)
        .with_max_export_batch_size(AT_ONCE)
        .with_max_queue_size(MAX_WAITING)
        .build();
    let mut processor = BatchSpanProcessor::builder(Telling { inner: exporter, told: Mutex::default() })
        .with_batch_config(limits)
        .build();
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    processor.set_resource(&resource.build());
    let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME")).with_version(env!("CARGO_PKG_VERSION")).build();
    let _ = TRACES.set(Traces { processor, scope, threshold: threshold(config.sample_ratio) });
    Ok(())
}

/// Sends what there still is. Blocks, for two seconds at most.
pub fn finish() {
    if let Some(traces) = TRACES.get() {
        let _ = traces.processor.shutdown_with_timeout(LAST_PATIENCE);
    }
}

/// Whether anything is traced.
pub fn is_on() -> bool {
    TRACES.get().is_some()
}

/// An exporter that says when it does not get through.
#[derive(Debug)]
struct Telling<E> {
    inner: E,
    told: Mutex<Option<Instant>>,
}

impl<E: SpanExporter> SpanExporter for Telling<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        if let Err(error) = &result {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
                *told = Some(Instant::now());
                tracing::warn!(%error, spans, "traces can not be sent, and are dropped: see tracing.otlp_endpoint");
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

fn threshold(ratio: f64) -> u64 {
    // 2^63 is exact as a float, and the product is in range.
    (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64
}

/// Where a span belongs: its trace, and the span that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    trace: TraceId,
    span: SpanId,
}

impl Parent {
    /// The trace of what has this `traceparent`, or else this correlation id; `None` if that is not sent.
    pub fn of(traceparent: Option<&str>, correlation: &str) -> Option<Self> {
        let traces = TRACES.get()?;
        match traceparent.and_then(parse) {
            Some(parent) => parent,
            None => Self::sampled(traces, digest(&["correlation", correlation])),
        }
    }

    /// A trace of its own; `None` if it is not sent.
    pub fn alone() -> Option<Self> {
        Self::sampled(TRACES.get()?, rand::random())
    }

    fn sampled(traces: &Traces, trace: [u8; 16]) -> Option<Self> {
        let low =
            u64::from_be_bytes([trace[8], trace[9], trace[10], trace[11], trace[12], trace[13], trace[14], trace[15]]);
        (low >> 1 < traces.threshold).then(|| Self { trace: TraceId::from_bytes(trace), span: SpanId::INVALID })
    }

    /// A span below it, which has begun at `start`. Whoever gives it an id gets the same one each time.
    pub fn span(self, start: SystemTime, id: Option<&str>) -> Span {
        let id = match id {
            Some(id) => {
                let whole = digest(&["span", &self.trace.to_string(), id]);
                [whole[0], whole[1], whole[2], whole[3], whole[4], whole[5], whole[6], whole[7]]
            }
            None => rand::random(),
        };
        Span { parent: self, id: SpanId::from_bytes(id), start }
    }
}

fn digest(parts: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

/// The header of W3C: `None` if it is none, `Some(None)` if it says that its trace is not sent.
fn parse(text: &str) -> Option<Option<Parent>> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !(is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)) {
        return None;
    }
    // Later versions may say more; the first says this.
    if version == "00" && parts.next().is_some() {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    if trace == TraceId::INVALID || span == SpanId::INVALID {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    Some(sampled.then_some(Parent { trace, span }))
}

/// A span that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    parent: Parent,
    id: SpanId,
    start: SystemTime,
}

/// What a span is of, seen from the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of its own.
    Internal,
    /// A request to a server.
    Client,
    /// A message is sent.
    Producer,
    /// A message is handled.
    Consumer,
}

impl Span {
    /// What tells others that they were caused by it.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(55);
        // Writing into a string does not fail.
        let _ = write!(text, "00-{}-{}-01", self.parent.trace, self.id);
        text
    }

    /// Ends it now. `error` says in a few words what went wrong, if anything did.
    pub fn end(self, name: String, kind: Kind, attributes: Vec<(&'static str, Value)>, error: Option<String>) {
        let Some(traces) = TRACES.get() else { return };
        // A clock that runs behind the source's gives no negative durations.
        let end = SystemTime::now().max(self.start);
        let context = SpanContext::new(self.parent.trace, self.id, TraceFlags::SAMPLED, false, TraceState::default());
        traces.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: self.parent.span,
            parent_span_is_remote: self.parent.span != SpanId::INVALID,
            span_kind: match kind {
                Kind::Internal => SpanKind::Internal,
                Kind::Client => SpanKind::Client,
                Kind::Producer => SpanKind::Producer,
                Kind::Consumer => SpanKind::Consumer,
            },
            name: name.into(),
            start_time: self.start,
            end_time: end,
            attributes: attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: traces.scope.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_w3c_is_taken_apart() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = parse(text).unwrap().unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span.to_string(), "00f067aa0ba902b7");
        assert_eq!(parse(&text.replace("-01", "-00")), Some(None), "its owner does not want it");
        assert!(parse(&format!("{}-more", text.replacen("00", "01", 1))).is_some(), "of a later version");
        for wrong in [
            "",
            "00-a-b-01",
            &format!("{text}-more"),
            &text.replacen("00", "ff", 1),
            &text.to_uppercase(),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_traced_again_has_the_same_ids() {
        let parent = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap().unwrap();
        let span = |id| parent.span(SystemTime::UNIX_EPOCH, id).traceparent();
        assert_eq!(span(Some("event 1")), span(Some("event 1")));
        assert_ne!(span(Some("event 1")), span(Some("event 2")));
        assert_ne!(span(None), span(None));
        assert!(parse(&span(None)).unwrap().is_some());
    }

    #[test]
    fn a_share_is_a_share_of_the_ids() {
        assert_eq!((threshold(0.0), threshold(1.0), threshold(0.5)), (0, 1 << 63, 1 << 62));
    }

    #[test]
    fn nothing_is_traced_unless_it_is_configured() {
        assert!(!is_on());
        assert_eq!(Parent::of(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), "request 1"), None);
        assert_eq!(Parent::alone(), None);
    }
}
