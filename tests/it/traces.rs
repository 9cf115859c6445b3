//! Traces, as a collector gets them by OTLP: what one request has caused stands together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::queue::{LOGIN, prefix, with_outbox};
use crate::support::{Daemon, Sqs, eventually};

/// A collector: it takes what is posted to it, and answers as one does.
pub(crate) struct Collector {
    port: u16,
    requests: Requests,
}

/// The head of each request, and what it brought.
type Requests = Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>;

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let requests = Requests::default();
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&kept)));
            }
        });
        Self { port, requests }
    }

    pub(crate) fn config(&self, ratio: f64) -> String {
        format!("[tracing]\notlp_endpoint = \"http://127.0.0.1:{}\"\nsample_ratio = {ratio:?}\n", self.port)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let resources = requests.iter().flat_map(|(_, request)| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// All that it was told, as text.
    pub(crate) fn everything(&self) -> String {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(_, request)| format!("{request:?}\n")).collect()
    }

    /// The heads of all requests.
    pub(crate) fn heads(&self) -> String {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(head, _)| head.as_str()).collect()
    }

    /// Waits for a span whose name begins so, and which this says of it.
    async fn span(&self, name: &str, with: &[(&str, &str)]) -> Span {
        eventually(Duration::from_secs(30), async || {
            let fits = |span: &Span| {
                let own = attributes(span);
                span.name.starts_with(name)
                    && with.iter().all(|(name, value)| own.get(*name).is_some_and(|own| own == value))
            };
            let spans = self.spans();
            let names: Vec<_> = spans.iter().map(|span| span.name.clone()).collect();
            spans.into_iter().find(fits).ok_or_else(|| format!("{name} {with:?} is not among {names:?}"))
        })
        .await
    }
}

async fn serve(mut stream: TcpStream, kept: Requests) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.is_ok_and(|bytes| bytes > 0) {
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let whole = end + 4 + length.trim().parse::<usize>().expect("a number");
        if read.len() < whole {
            continue;
        }
        let request = ExportTraceServiceRequest::decode(&read[end + 4..whole]).expect("spans");
        kept.lock().unwrap_or_else(PoisonError::into_inner).push((head, request));
        read.drain(..whole);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.expect("an answer");
    }
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |attribute: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        attribute.value.as_ref().and_then(|value| value.value.as_ref()).map(text).unwrap_or_default()
    };
    span.attributes.iter().map(|attribute| (attribute.key.clone(), value(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_has_caused_is_one_trace() {
    let (db, sqs, collector) = (with_outbox("traces").await, Sqs::shared(), Collector::start().await);
    db.pg.execute("CREATE TABLE traced (id int8 PRIMARY KEY, name text)").await;
    let config = Sqs::handled(sqs.port(), &prefix(&db)) + &collector.config(1.0);
    let mut daemon = Daemon::spawn(&db, &config);
    daemon.wait_ready().await;
    daemon.wait_log("events that are written into the outbox table are sent from now on", 1).await;
    db.pg
        .execute(&format!(
            "BEGIN; SELECT pg_logical_emit_message(true, 'walhouse.correlation', 'request 7');
            INSERT INTO traced VALUES (1, 'canary'), (2, 'canary');
            INSERT INTO outbox_event (event_type, payload) VALUES ('SecurityEventOccurred', '{LOGIN}');
            COMMIT"
        ))
        .await;
    let seven = [("correlation_id", "request 7")];
    let commit = collector.span("commit", &seven).await;
    let sent = collector.span("send ", &seven).await;
    let handled = collector.span("process ", &seven).await;
    assert!(commit.trace_id == sent.trace_id && sent.trace_id == handled.trace_id, "one request is one trace");
    assert_eq!(handled.parent_span_id, sent.span_id, "it is handled because it was sent");
    assert!(sent.start_time_unix_nano == commit.start_time_unix_nano, "both begin with the commit");
    assert!(sent.end_time_unix_nano > sent.start_time_unix_nano);
    assert_eq!((sent.kind(), handled.kind()), (SpanKind::Producer, SpanKind::Consumer));
    assert_eq!(sent.name, format!("send {}audit-log-queue", prefix(&db)));
    // The row of the outbox is a change that the lane is handed, too.
    assert_eq!(attributes(&commit)["walhouse.changes"], "3");
    let id = db.pg.value("SELECT id FROM outbox_event").await;
    assert_eq!(attributes(&sent)["walhouse.event_id"], id);
    assert_eq!(attributes(&handled)["walhouse.outcome"], "done");

    let insert = collector.span("INSERT traced", &[("walhouse.rows", "2")]).await;
    assert_eq!(insert.kind(), SpanKind::Client);
    let query = attributes(&insert)["walhouse.query_id"].clone();
    assert!(query.starts_with(&format!("walhouse-{}-", db.name)), "{query}");

    // An application's own trace is gone on with, and so is its decision.
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    for (flags, correlation) in [("00", "unwanted"), ("01", "wanted")] {
        db.pg
            .execute(&format!(
                "SELECT pg_logical_emit_message(true, 'walhouse.outbox', '{{\"eventType\": \"SecurityEventOccurred\", \"payload\": {LOGIN}, \
                \"correlationId\": \"{correlation}\", \"traceparent\": \"00-{trace}-{span}-{flags}\"}}')"
            ))
            .await;
    }
    let sent = collector.span("send ", &[("correlation_id", "wanted")]).await;
    assert_eq!((hex(&sent.trace_id), hex(&sent.parent_span_id)), (trace.to_owned(), span.to_owned()));
    let handled = collector.span("process ", &[("correlation_id", "wanted")]).await;
    assert_eq!((hex(&handled.trace_id), handled.parent_span_id), (trace.to_owned(), sent.span_id));

    // One that can not be handled says so, and no span has a value of a row.
    let queue = format!("{}audit-log-queue", prefix(&db));
    sqs.send(&queue, "canary").await;
    let failed = collector.span("process ", &[("walhouse.outcome", "dead")]).await;
    assert_eq!(failed.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
    // What comes of it is caused by it.
    let letter = &sqs.take(&format!("{}audit-log-dlq", prefix(&db)), 1).await[0];
    let caused_by = format!("00-{}-{}-01", hex(&failed.trace_id), hex(&failed.span_id));
    assert_eq!(letter.attributes.get("traceparent"), Some(&caused_by));
    // What is left goes out at the end.
    assert!(daemon.sigterm(Duration::from_secs(25)).await.success());
    let spans = collector.spans();
    assert!(!spans.iter().any(|span| attributes(span).values().any(|value| value == "unwanted")), "{spans:?}");
    assert!(!format!("{spans:?}").contains("canary"), "{spans:?}");
    let first = collector.requests.lock().unwrap_or_else(PoisonError::into_inner)[0].1.clone();
    assert!(format!("{:?}", first.resource_spans[0].resource).contains("\"walhouse\""), "{first:?}");
    drop(daemon);
    db.cleanup().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_keeps_nobody_waiting() {
    let (db, sqs) = (with_outbox("untraced").await, Sqs::shared());
    // It takes connections, and answers nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = silent.local_addr().expect("bound").port();
    let tracing = format!("[tracing]\notlp_endpoint = \"http://127.0.0.1:{port}\"\nsample_ratio = 1.0\n");
    db.pg.execute("CREATE TABLE traced (id int8 PRIMARY KEY)").await;
    let mut daemon = Daemon::spawn(&db, &(Sqs::handled(sqs.port(), &prefix(&db)) + &tracing));
    daemon.wait_ready().await;
    db.pg.execute("INSERT INTO traced SELECT generate_series(1, 20000)").await;
    for id in 20_001..20_101 {
        db.pg.execute(&format!("INSERT INTO traced VALUES ({id})")).await;
    }
    eventually(Duration::from_secs(30), async || {
        match db.ch.try_query("SELECT count() FROM traced_current").await?.as_str() {
            "20100" => Ok(()),
            rows => Err(rows.to_owned()),
        }
    })
    .await;
    daemon.wait_log("traces can not be sent", 1).await;
    assert!(daemon.sigterm(Duration::from_secs(25)).await.success());
    drop((daemon, silent));
    db.cleanup().await;
}
