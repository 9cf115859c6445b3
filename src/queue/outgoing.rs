//! An event on its way out: from what an application wrote to what a queue takes.

use super::{
    claim::{self, Claim},
    pending::MAX_BYTES,
};
use crate::{
    event::{
        envelope::{EventType, Metadata, Place, Position, Queue, VERSION, Written},
        schema::{self, Misfit},
    },
    trace::{Kind, Parent, Span},
};
use serde::Serialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use std::{borrow::Cow, time::SystemTime};

/// What an application has written, as far as it could be read.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Where it stands.
    pub place: Place,
    /// When its transaction committed.
    pub time: SystemTime,
    /// The name of its type.
    pub event_type: String,
    /// [`VERSION`] if it has none.
    pub version: Option<String>,
    /// Its own id, else that of its place.
    pub id: Option<String>,
    /// Events of one key keep their order.
    pub key: Option<String>,
    /// What correlates it, else what the transaction says, else the transaction itself.
    pub correlation: Option<String>,
    /// Who wrote it.
    pub service: String,
    /// The W3C header of that name.
    pub traceparent: Option<String>,
    /// The table, of a change.
    pub table: Option<String>,
    /// JSON, one would hope.
    pub payload: String,
}

/// An envelope on its way out; nothing of its payload is copied for it.
#[derive(Serialize)]
struct Enclosed<'a> {
    metadata: Metadata,
    payload: &'a RawValue,
}

/// What goes into a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The queue, or the one whose dead letters it joins.
    pub queue: Queue,
    /// Why it is a dead letter.
    pub dead: Option<String>,
    /// The event's id.
    pub id: String,
    /// Events of one key keep their order.
    pub key: Option<String>,
    /// The envelope, or what refers to its payload.
    pub body: String,
    /// What travels beside the body, by name. None is empty, which SQS does not take.
    pub attributes: Vec<(&'static str, String)>,
    /// Its way to the queue, if that is traced. It is the same each time the event is read.
    pub span: Option<Span>,
}

impl Outgoing {
    /// An event of walhouse's own.
    ///
    /// # Errors
    /// If it does not have the shape of its type.
    pub fn own(of: EventType, metadata: Metadata, payload: &Value, traceparent: Option<&str>) -> Result<Self, Misfit> {
        let (span, traceparent) = traced(&metadata, traceparent, SystemTime::now());
        let attributes = attributes(&metadata, Some(of), None, traceparent.as_deref());
        let id = metadata.event_id.clone();
        let payload = &*raw(payload);
        let body = serde_json::to_string(&Enclosed { metadata, payload }).expect("an envelope is JSON");
        schema::check_event(&body)?;
        Ok(Self { queue: of.queue(), dead: None, id, key: None, body: legal(body), attributes, span })
    }

    /// What it belongs together with; empty if that has no character that SQS takes.
    pub fn correlation_id(&self) -> &str {
        let own = self.attributes.iter().find(|(name, _)| *name == CORRELATION);
        own.map_or("", |(_, correlation)| correlation)
    }

    /// Refers from now on to what it was, which is in the store.
    pub fn refer(&mut self, claim: Claim) {
        self.body = claim.body;
        self.attributes.push((claim::ATTRIBUTE, claim.bytes));
    }

    /// Its queue, of this name, has confirmed it.
    pub fn was_sent(&self, queue: impl Fn() -> String) {
        let Some(span) = self.span else { return };
        let queue = queue();
        let mut attributes = vec![
            ("messaging.system", "aws_sqs".into()),
            ("messaging.operation.type", "send".into()),
            ("messaging.destination.name", queue.clone().into()),
            ("walhouse.event_id", self.id.clone().into()),
        ];
        let led = [("eventType", "walhouse.event_type"), (CORRELATION, "correlation_id")];
        attributes.extend(led.iter().filter_map(|(name, attribute)| {
            self.attributes.iter().find(|(own, _)| own == name).map(|(_, value)| (*attribute, value.clone().into()))
        }));
        span.end(format!("send {queue}"), Kind::Producer, attributes, self.dead.clone());
    }

    /// Whether it does.
    pub fn refers(&self) -> bool {
        self.attributes.iter().any(|(name, _)| *name == claim::ATTRIBUTE)
    }
}

const CORRELATION: &str = "correlationId";
/// The longest that an identifier may be; what is longer is no identifier.
const LONGEST: usize = 256;

impl Draft {
    /// The event, checked against the schema of its type. `correlation` is what the transaction says.
    pub fn finish(self, correlation: Option<&str>) -> Outgoing {
        let of = self.event_type.parse::<EventType>();
        let own = self.correlation.as_deref().filter(|own| !own.is_empty());
        let correlation = own.or(correlation).map_or_else(|| self.place.correlation_id().to_string(), str::to_owned);
        let metadata = Metadata {
            event_id: self.id.clone().unwrap_or_else(|| self.place.event_id().to_string()),
            event_timestamp: humantime::format_rfc3339_micros(self.time).to_string(),
            event_type: self.event_type.clone(),
            event_version: self.version.clone().unwrap_or_else(|| VERSION.to_owned()),
            correlation_id: correlation,
            source_service: self.service.clone(),
            position: (self.place.written == Written::Change).then_some(Position {
                epoch: self.place.epoch.0,
                commit_lsn: self.place.commit,
                record_lsn: self.place.record,
            }),
        };
        let (span, traceparent) = traced(&metadata, self.traceparent.as_deref(), self.time);
        let attributes = attributes(&metadata, of.ok(), self.table.as_deref(), traceparent.as_deref());
        // What is no JSON is kept as a text, for whoever looks at the letter.
        let as_text = |error: serde_json::Error| (raw(&self.payload), Misfit::Json(error.to_string()));
        let read = serde_json::from_str::<&RawValue>(&self.payload).map_err(as_text);
        let (payload, is_json) = match &read {
            Ok(payload) => (*payload, Ok(())),
            Err((text, misfit)) => (&**text, Err(misfit.clone())),
        };
        let id = metadata.event_id.clone();
        let body = serde_json::to_string(&Enclosed { metadata, payload }).expect("an envelope is JSON");
        let checked = match of {
            Err(error) => Err(error.to_string()),
            Ok(of) => {
                is_json.and_then(|()| schema::check_event(&body)).map_err(|misfit| misfit.to_string()).map(|_| of)
            }
        };
        Outgoing {
            // What is of no type is for those who look after what happens to security.
            queue: of.map_or(Queue::AuditLog, EventType::queue),
            dead: checked.err(),
            id,
            key: self.key.filter(|key| !key.is_empty()),
            // What is too large for any queue goes into the store, as it was written.
            body: if body.len() > MAX_BYTES { body } else { legal(body) },
            attributes,
            span,
        }
    }
}

/// The span of an event's way to its queue, if it is traced, and the `traceparent` that goes with it: the span's, so that what
/// handles the event is caused by it, and otherwise what came along.
fn traced<'a>(
    metadata: &Metadata,
    traceparent: Option<&'a str>,
    begun: SystemTime,
) -> (Option<Span>, Option<Cow<'a, str>>) {
    let span =
        Parent::of(traceparent, &metadata.correlation_id).map(|parent| parent.span(begun, Some(&metadata.event_id)));
    let traceparent = span.map(|span| Cow::Owned(span.traceparent())).or(traceparent.map(Cow::Borrowed));
    (span, traceparent)
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("a text, or a value, is JSON")
}

fn attributes(
    metadata: &Metadata,
    of: Option<EventType>,
    table: Option<&str>,
    traceparent: Option<&str>,
) -> Vec<(&'static str, String)> {
    let all = [
        ("eventType", Some(metadata.event_type.as_str())),
        ("eventVersion", Some(metadata.event_version.as_str())),
        (CORRELATION, Some(metadata.correlation_id.as_str())),
        ("traceparent", traceparent),
    ];
    let named = all.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())));
    let key = of.map(|of| ("routingKey", of.routing_key(table)));
    let fit = |(name, value): (&'static str, String)| {
        let value: String = value.chars().filter(|&one| is_legal(one)).take(LONGEST).collect();
        (!value.is_empty()).then_some((name, value))
    };
    named.chain(key).filter_map(fit).collect()
}

/// What SQS takes of Unicode: the characters of XML 1.0.
pub(super) fn is_legal(one: char) -> bool {
    matches!(one, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// The same JSON with escapes in place of characters that SQS does not take. Outside of strings JSON has none of them. Those
/// beyond U+FFFF are escaped too: SQS takes them, and what stands in for it at home does not.
pub(super) fn legal(json: String) -> String {
    let stays = |one: char| is_legal(one) && one <= '\u{FFFF}';
    if json.chars().all(stays) {
        return json;
    }
    let mut out = String::with_capacity(json.len() + 16);
    for one in json.chars() {
        match stays(one) {
            true => out.push(one),
            false => one.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Epoch, Lsn};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn what_refers_to_the_store_says_so_and_keeps_its_correlation() {
        let mut event = draft().finish(Some("request 7"));
        assert_eq!((event.refers(), event.correlation_id()), (false, "request 7"));
        event.refer(Claim { body: "{}".to_owned(), bytes: "7".to_owned() });
        assert_eq!((event.refers(), event.correlation_id(), event.body.as_str()), (true, "request 7", "{}"));
    }

    fn draft() -> Draft {
        Draft {
            place: Place {
                system_identifier: 1,
                epoch: Epoch(0),
                commit: Lsn(200),
                record: Lsn(100),
                written: Written::Row,
                ordinal: 0,
            },
            time: UNIX_EPOCH + Duration::from_secs(86_400),
            event_type: "SecurityEventOccurred".to_owned(),
            version: None,
            id: Some("018f3b5e-7c1a-8000-8000-0123456789ab".to_owned()),
            key: Some("user 1".to_owned()),
            correlation: None,
            service: "shop".to_owned(),
            traceparent: None,
            table: None,
            payload: r#"{"eventType": "login", "actingUserId": "u1", "outcome": "success"}"#.to_owned(),
        }
    }

    #[test]
    fn an_event_has_its_envelope_and_its_attributes() {
        let event = Draft { traceparent: Some("00-a-b-01".to_owned()), ..draft() }.finish(Some("request 7"));
        assert_eq!((event.queue, event.dead, event.key.as_deref()), (Queue::AuditLog, None, Some("user 1")));
        assert_eq!(
            event.body,
            r#"{"metadata":{"eventId":"018f3b5e-7c1a-8000-8000-0123456789ab","eventTimestamp":"1970-01-02T00:00:00.000000Z","eventType":"SecurityEventOccurred","eventVersion":"1.0","correlationId":"request 7","sourceService":"shop"},"payload":{"eventType": "login", "actingUserId": "u1", "outcome": "success"}}"#
        );
        let attributes: Vec<_> = event.attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(
            attributes,
            [
                ("eventType", "SecurityEventOccurred"),
                ("eventVersion", "1.0"),
                ("correlationId", "request 7"),
                ("traceparent", "00-a-b-01"),
                ("routingKey", "audit.security")
            ]
        );
    }

    #[test]
    fn an_events_own_correlation_wins_and_without_any_the_transaction_is_it() {
        let body = |event: Outgoing| event.body;
        let own = Draft { correlation: Some("own".to_owned()), ..draft() };
        assert!(body(own.finish(Some("other"))).contains(r#""correlationId":"own""#));
        let transaction = draft().place.correlation_id().to_string();
        assert!(body(draft().finish(None)).contains(&transaction));
        let empty = Draft { correlation: Some(String::new()), ..draft() };
        assert!(body(empty.finish(None)).contains(&transaction));
    }

    #[test]
    fn what_is_no_event_is_a_dead_letter_that_says_why() {
        let dead = |draft: Draft| {
            let event = draft.finish(None);
            assert!(serde_json::from_str::<Value>(&event.body).is_ok(), "{}", event.body);
            (event.queue, event.dead.unwrap_or_default())
        };
        let (queue, why) = dead(Draft { event_type: "OrderPlaced".to_owned(), ..draft() });
        assert!(queue == Queue::AuditLog && why.contains("there is no event of that type"), "{why}");
        let (queue, why) = dead(Draft { event_type: "AsynchronousOperationRequested".to_owned(), ..draft() });
        assert!(queue == Queue::AsyncOperations && why.starts_with("/payload: "), "{why}");
        let (_, why) = dead(Draft { payload: "{\"canary".to_owned(), ..draft() });
        assert!(why.contains("it is no JSON") && !why.contains("canary"), "{why}");
        let kept = Draft { payload: "{\"canary".to_owned(), ..draft() }.finish(None).body;
        assert!(kept.ends_with(r#","payload":"{\"canary"}"#), "{kept}");
        let (_, why) = dead(Draft { version: Some("2.0".to_owned()), ..draft() });
        assert!(why.contains("2.0"), "{why}");
        let (_, why) = dead(Draft { id: Some("7".to_owned()), ..draft() });
        assert!(why.starts_with("/metadata/eventId: "), "{why}");
        assert_eq!(dead(Draft { version: Some("1.3".to_owned()), ..draft() }).1, "");
    }

    #[test]
    fn characters_that_sqs_does_not_take_travel_as_escapes() {
        let payload =
            "{\"eventType\": \"login\", \"actingUserId\": \"\u{FFFE}\u{1F600}\u{7F}\", \"outcome\": \"success\"}";
        let event =
            Draft { payload: payload.to_owned(), correlation: Some("a\u{1}b".to_owned()), ..draft() }.finish(None);
        assert!(event.body.chars().all(|one| is_legal(one) && one <= '\u{FFFF}'), "{:?}", event.body);
        let back: Value = serde_json::from_str(&event.body).unwrap();
        assert_eq!(back["payload"]["actingUserId"], "\u{FFFE}\u{1F600}\u{7F}");
        assert_eq!(back["metadata"]["correlationId"], "a\u{1}b");
        assert!(event.attributes.contains(&("correlationId", "ab".to_owned())));
    }
}
