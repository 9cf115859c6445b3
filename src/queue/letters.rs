//! Dead letters: events that nobody could handle, each with why, of whom, when and after how many tries.
//!
//! Whoever makes one marks it with attributes of its message. One that SQS itself has moved, after a worker's last try ended in a
//! crash, has none of them.

use super::{
    claim::Referred,
    messages::{MAX_ATTRIBUTES, Message},
    outgoing::is_legal,
    shape::shape,
};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, time::SystemTime};

/// What the attributes of dead letters begin with. A letter that is sent home loses them.
const MARK: &str = "deadLetter";
const REASON: &str = "deadLetterReason";
const HANDLER: &str = "deadLetterHandler";
const TRIES: &str = "deadLetterTries";
const TIME: &str = "deadLetterTime";
/// What a letter that was sent home has instead: when that was.
const REDRIVEN: &str = "redriven";
/// Attributes that walhouse gives its events.
const OWN: [&str; 5] = ["correlationId", "eventType", "eventVersion", "routingKey", "traceparent"];
/// Who makes letters of what an application wrote: nobody has tried to handle it.
pub(super) const OUTBOX: &str = "outbox";
/// The longest reason that is kept.
const LONGEST_REASON: usize = 1024;

/// The marks of a letter that is made now. No value is empty, nor has it characters that SQS does not take.
pub(super) fn marks(why: &str, handler: &str, tries: u32) -> [(&'static str, String); 4] {
    let reason: String = why.chars().filter(|&one| is_legal(one) && !one.is_control()).take(LONGEST_REASON).collect();
    let reason = if reason.is_empty() { "nobody said why".to_owned() } else { reason };
    let [handler, tries] = who(handler, tries);
    [(REASON, reason), handler, tries, (TIME, humantime::format_rfc3339_millis(SystemTime::now()).to_string())]
}

/// Of these marks, those that say who has tried, and how often.
pub(super) fn who(handler: &str, tries: u32) -> [(&'static str, String); 2] {
    [(HANDLER, handler.to_owned()), (TRIES, tries.to_string())]
}

/// A dead letter, as it is listed: nothing of its payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// SQS's own id of the message.
    pub message_id: String,
    /// The event's id, if it has one.
    pub event_id: Option<String>,
    /// The name of its type, if it has one.
    pub event_type: Option<String>,
    /// Its version, if it has one.
    pub event_version: Option<String>,
    /// What belongs together with it.
    pub correlation_id: Option<String>,
    /// Why nobody could handle it.
    pub reason: String,
    /// Who could not; `outbox` if nobody tried, since it does not fit its schema.
    pub handler: Option<String>,
    /// How often that was tried.
    pub tries: Option<u32>,
    /// When it was given up, RFC 3339.
    pub time: Option<String>,
    /// Where its payload is, if that was too large for a queue.
    pub payload_location: Option<String>,
    /// How many bytes that has.
    pub payload_bytes: Option<u64>,
    /// What its message is made of, where that is asked for.
    #[serde(flatten)]
    pub made_of: Option<MadeOf>,
}

/// What a message is made of, without anything of its payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MadeOf {
    /// The names of the fields of its body, each with the type of its value.
    pub shape: Value,
    /// Its attributes. Of those that walhouse does not write itself the names alone.
    pub attributes: BTreeMap<String, Option<String>>,
}

impl Letter {
    /// What a message of a queue of dead letters is. The body says what no attribute does.
    pub fn of(message: &Message) -> Self {
        let body: Value = serde_json::from_str(&message.body).unwrap_or_default();
        let named = |name: &str| message.attributes.get(name).cloned();
        let inside = |name: &str| {
            let found = body.pointer("/metadata").and_then(|metadata| metadata.get(name)).or_else(|| body.get(name));
            found.and_then(Value::as_str).map(str::to_owned)
        };
        let moved = || "SQS has moved it: whoever had taken it for the last time ended without a word".to_owned();
        let referred = Referred::of(&body);
        let sent = || message.sent.map(|sent| humantime::format_rfc3339_millis(sent).to_string());
        Self {
            message_id: message.id.clone(),
            event_id: inside("eventId"),
            event_type: named("eventType").or_else(|| inside("eventType")),
            event_version: named("eventVersion").or_else(|| inside("eventVersion")),
            correlation_id: named("correlationId").or_else(|| inside("correlationId")),
            reason: named(REASON).unwrap_or_else(moved),
            handler: named(HANDLER),
            tries: named(TRIES).and_then(|tries| tries.parse().ok()),
            time: named(TIME).or_else(sent),
            payload_location: referred.as_ref().map(|referred| referred.reference().location.clone()),
            payload_bytes: referred.as_ref().map(|referred| referred.reference().bytes),
            made_of: None,
        }
    }

    /// The same, with what its message is made of.
    pub(super) fn looked_into(self, message: &Message) -> Self {
        let value = |name: &str, value: &str| {
            let is_own = name.starts_with(MARK) || name == REDRIVEN || OWN.contains(&name);
            is_own.then(|| value.to_owned())
        };
        let attributes = message.attributes.iter().map(|(name, text)| (name.clone(), value(name, text))).collect();
        Self { made_of: Some(MadeOf { shape: shape(&message.body), attributes }), ..self }
    }
}

/// Which letters are meant; all of them if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only that of this event, or of this message.
    pub id: Option<String>,
    /// Only those of events of this type.
    pub event_type: Option<String>,
    /// Only those whose reason has this in it.
    pub reason: Option<String>,
}

impl Filter {
    /// Whether a letter is meant.
    pub fn takes(&self, letter: &Letter) -> bool {
        let is =
            |wanted: &Option<String>, own: Option<&str>| wanted.as_deref().is_none_or(|wanted| own == Some(wanted));
        (is(&self.id, letter.event_id.as_deref()) || is(&self.id, Some(&letter.message_id)))
            && is(&self.event_type, letter.event_type.as_deref())
            && self.reason.as_deref().is_none_or(|part| letter.reason.contains(part))
    }
}

/// The same message without what makes it a dead letter, and with what tells it from a message that never was one.
pub(super) fn revived(message: &Message) -> Message {
    let mut revived = message.clone();
    revived.attributes.retain(|name, _| !name.starts_with(MARK));
    // One that walhouse has made a letter of has room, since it had more marks than this one.
    if revived.attributes.len() < MAX_ATTRIBUTES {
        revived.attributes.insert(REDRIVEN.to_owned(), humantime::format_rfc3339_millis(SystemTime::now()).to_string());
    }
    revived
}

/// Whether a message was a dead letter before: walhouse has sent it home, or SQS has, which leaves the marks.
pub(super) fn was_dead(message: &Message) -> bool {
    message.attributes.keys().any(|name| name == REDRIVEN || name.starts_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str, attributes: &[(&str, &str)]) -> Message {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Message { id: "m1".to_owned(), body: body.to_owned(), attributes: attributes.collect(), ..Message::default() }
    }

    #[test]
    fn what_a_letter_is_made_of_has_no_value_of_somebody_else() {
        let attributes = [("routingKey", "audit.security"), ("deadLetterTries", "4"), ("theirs", "canary")];
        let message = message(r#"{"metadata": {"eventId": "e1"}, "payload": {"who": "canary"}}"#, &attributes);
        let told = serde_json::to_value(Letter::of(&message).looked_into(&message)).unwrap();
        assert!(!told.to_string().contains("canary"), "{told}");
        assert_eq!(told["shape"]["payload"]["who"], "string");
        let attributes = &told["attributes"];
        assert_eq!((&attributes["routingKey"], &attributes["theirs"]), (&"audit.security".into(), &Value::Null));
        assert!(attributes.as_object().unwrap().contains_key("theirs"));
    }

    #[test]
    fn a_letter_says_what_its_attributes_and_its_body_say() {
        let body =
            r#"{"metadata": {"eventId": "e1", "eventType": "A", "eventVersion": "1.0"}, "payload": {"eventId": "no"}}"#;
        let marked =
            message(body, &[("deadLetterReason", "a full moon"), ("deadLetterTries", "4"), ("eventType", "B")]);
        let letter = Letter::of(&marked);
        assert_eq!((letter.event_id.as_deref(), letter.event_type.as_deref()), (Some("e1"), Some("B")));
        assert_eq!((letter.event_version.as_deref(), letter.tries), (Some("1.0"), Some(4)));
        assert_eq!(letter.reason, "a full moon");
        let moved = Letter::of(&message("no JSON at all", &[]));
        assert!(moved.event_id.is_none() && moved.reason.starts_with("SQS has moved it"), "{moved:?}");
        // One that was too large.
        let referring = r#"{"metadata": {"eventId": "e2"}, "payloadReference": {"location": "s3://b/k", "bytes": 7, "sha256": "0"}}"#;
        let letter = Letter::of(&message(referring, &[]));
        assert_eq!((letter.event_id.as_deref(), letter.payload_bytes), (Some("e2"), Some(7)));
        assert_eq!((letter.payload_location.as_deref(), moved.payload_location), (Some("s3://b/k"), None));
    }

    #[test]
    fn a_filter_takes_what_fits_all_that_it_says() {
        let letter = Letter::of(&message(
            r#"{"metadata": {"eventId": "e1", "eventType": "A"}}"#,
            &[("deadLetterReason", "/payload: it is wrong")],
        ));
        let filter = |id: Option<&str>, of: Option<&str>, reason: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_owned);
            Filter { id: own(id), event_type: own(of), reason: own(reason) }.takes(&letter)
        };
        assert!(filter(None, None, None) && filter(Some("e1"), Some("A"), Some("payload")));
        assert!(filter(Some("m1"), None, None), "the message's own id will do");
        assert!(!filter(Some("e2"), None, None) && !filter(None, Some("B"), None) && !filter(None, None, Some("moon")));
    }

    #[test]
    fn what_is_sent_home_is_no_dead_letter_any_more() {
        let marks: BTreeMap<_, _> = marks("a\u{1}b\u{FFFE}", "audit", 3).into();
        assert_eq!((marks["deadLetterReason"].as_str(), marks["deadLetterTries"].as_str()), ("ab", "3"));
        let named: Vec<_> = marks.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let revived = revived(&message("{}", &[&named[..], &[("eventType", "A")]].concat()));
        assert_eq!(revived.attributes.keys().collect::<Vec<_>>(), ["eventType", "redriven"]);
        assert!(
            was_dead(&revived) && was_dead(&message("{}", &named)) && !was_dead(&message("{}", &[("eventType", "A")]))
        );
        let foreign: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"].map(|name| (name, "x")).into();
        assert_eq!(super::revived(&message("{}", &foreign)).attributes.len(), 10, "SQS takes no more");
    }
}
