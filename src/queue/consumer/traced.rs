//! The spans of messages in hand.

use crate::{
    queue::messages::Message,
    trace::{Kind, Parent, Span},
};
use std::time::SystemTime;

/// A message is in hand: if it is traced, what its handler causes is caused by this span.
pub(super) fn begin(message: &mut Message) -> Option<Span> {
    let traceparent = message.attributes.get("traceparent").map(String::as_str);
    let correlation = message.attributes.get("correlationId").map(String::as_str).unwrap_or_default();
    let span = Parent::of(traceparent, correlation)?.span(SystemTime::now(), None);
    message.attributes.insert("traceparent".to_owned(), span.traceparent());
    Some(span)
}

/// It is not any more.
pub(super) fn end(span: Span, queue: &str, worker: &'static str, message: &Message, outcome: &'static str) {
    let mut attributes = vec![
        ("messaging.system", "aws_sqs".into()),
        ("messaging.operation.type", "process".into()),
        ("messaging.destination.name", queue.to_owned().into()),
        ("messaging.message.id", message.id.clone().into()),
        ("walhouse.worker", worker.into()),
        ("walhouse.outcome", outcome.into()),
        ("walhouse.tries", i64::from(message.taken).into()),
    ];
    let named = [("correlationId", "correlation_id"), ("eventType", "walhouse.event_type")];
    attributes.extend(
        named.iter().filter_map(|(name, attribute)| {
            message.attributes.get(*name).map(|value| (*attribute, value.clone().into()))
        }),
    );
    // Its log line says why; here stands how it ended.
    let error = matches!(outcome, "again" | "dead" | "lost").then(|| outcome.to_owned());
    span.end(format!("process {queue}"), Kind::Consumer, attributes, error);
}
