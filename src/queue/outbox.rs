//! From the stream to the events that applications wrote into it: rows of the outbox table, and logical messages.
//!
//! Both stand in the transaction of what they tell of, so they come if that committed, and in the order of the commits.
//! Whatever an application has written, nothing here fails: what is no event becomes a dead letter with the reason.
//!
//! A message may name what correlates the events of its transaction from its place on. The parts of a transaction with
//! savepoints are merged by position, and a message bears its record's end, which is where the next record begins: so it may
//! come right *after* a row that was written after it. That row waits until what follows it is known.

use super::{
    outgoing::{Draft, Outgoing},
    published::{Published, Table},
};
use crate::{
    event::{
        Change, Epoch, Event, Lsn, Op, Relation, Transaction, Tuple, Value,
        envelope::{EventType, Place, Written},
    },
    lane::CORRELATION_PREFIX,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{collections::HashMap, sync::Arc};

/// The prefix of messages that are events.
pub const OUTBOX_PREFIX: &[u8] = b"walhouse.outbox";

/// Where events come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// Its history.
    pub epoch: Epoch,
    /// The service that events are from if they do not say so themselves.
    pub service: String,
    /// Schema and name of the outbox table.
    pub table: (String, String),
    /// The tables whose changes are events themselves.
    pub published: Arc<Published>,
}

/// Reads events out of the stream.
#[derive(Debug)]
pub struct Outbox {
    origin: Origin,
    /// The oid of the outbox table as it was announced, and the names of its columns.
    relation: Option<(u32, Vec<String>)>,
    /// By oid, the tables whose changes are published, as they were announced.
    published: HashMap<u32, Table>,
    transaction: Option<Transaction>,
    correlation: Option<String>,
    /// Events of the last record, until what follows is known.
    held: Vec<Draft>,
    /// Where the last event stood.
    last: Option<Place>,
}

/// What one event of the stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that this is about, or it waits.
    Nothing,
    /// A message that stands in no transaction: it is not published, because it would be if the application's own
    /// transaction were rolled back.
    OutsideTransaction,
}

impl Outbox {
    /// Nothing yet of `origin`.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            relation: None,
            published: HashMap::new(),
            transaction: None,
            correlation: None,
            held: Vec::new(),
            last: None,
        }
    }

    /// Takes the next event of the stream, and adds the application's events that are complete to `out`. `data` is the
    /// group's.
    pub fn take(&mut self, data: &[u8], event: &Event, out: &mut Vec<Outgoing>) -> Seen {
        match event {
            Event::Relation(relation) => self.announce(relation),
            Event::Begin(transaction) => {
                (self.transaction, self.correlation) = (Some(*transaction), None);
            }
            Event::Change(change) => {
                self.release_before(change.record, out);
                if self.relation.as_ref().is_some_and(|(oid, _)| *oid == change.relation)
                    && let Op::Insert { new } = change.op
                {
                    self.row(new.bytes(data), change);
                } else if !self.published.is_empty() {
                    self.change(data, change);
                }
            }
            Event::Truncate { record, .. } => self.release_before(*record, out),
            Event::Message { record, transactional, prefix, content } => {
                let (prefix, content) = (prefix.bytes(data), content.bytes(data));
                if !transactional {
                    return if prefix == OUTBOX_PREFIX { Seen::OutsideTransaction } else { Seen::Nothing };
                }
                self.release_before(*record, out);
                if prefix == CORRELATION_PREFIX {
                    // It names what stands at its position too, and that may be here already.
                    self.correlation = Some(String::from_utf8_lossy(content).into_owned()).filter(|id| !id.is_empty());
                } else if prefix == OUTBOX_PREFIX {
                    self.message(content, *record);
                }
            }
            Event::Commit { .. } => {
                self.release(out);
                self.transaction = None;
            }
            Event::Idle(_) => {}
        }
        Seen::Nothing
    }

    fn announce(&mut self, relation: &Relation) {
        match self.origin.published.table(relation) {
            Some(table) => self.published.insert(relation.oid, table),
            // It has another name now, perhaps.
            None => self.published.remove(&relation.oid),
        };
        let (schema, name) = &self.origin.table;
        if (&relation.schema, &relation.name) == (schema, name) {
            let columns = relation.columns.iter().map(|column| column.name.clone()).collect();
            self.relation = Some((relation.oid, columns));
        } else if self.relation.as_ref().is_some_and(|(oid, _)| *oid == relation.oid) {
            // It has another name now.
            self.relation = None;
        }
    }

    /// What stands before `record` has been followed by something that is no correlation of its own.
    fn release_before(&mut self, record: Lsn, out: &mut Vec<Outgoing>) {
        if self.held.first().is_some_and(|held| held.place.record < record) {
            self.release(out);
        }
    }

    fn release(&mut self, out: &mut Vec<Outgoing>) {
        let correlation = self.correlation.as_deref();
        out.extend(self.held.drain(..).map(|draft| draft.finish(correlation)));
    }

    fn place(&mut self, transaction: &Transaction, record: Lsn, written: Written) -> Place {
        let place = Place {
            system_identifier: self.origin.system_identifier,
            epoch: self.origin.epoch,
            commit: transaction.commit,
            record,
            written,
            ordinal: 0,
        };
        let before = self.last.filter(|last| Place { ordinal: 0, ..*last } == place);
        let place = Place { ordinal: before.map_or(0, |last| last.ordinal + 1), ..place };
        self.last = Some(place);
        place
    }

    fn draft(&mut self, record: Lsn, written: Written) -> Option<Draft> {
        // The assembler gives no change outside of a transaction.
        let transaction = self.transaction?;
        Some(Draft {
            place: self.place(&transaction, record, written),
            time: transaction.time,
            event_type: String::new(),
            version: None,
            id: None,
            key: None,
            correlation: None,
            service: self.origin.service.clone(),
            traceparent: None,
            table: None,
            payload: String::new(),
        })
    }

    fn row(&mut self, tuple: &[u8], change: &Change) {
        let Some(mut draft) = self.draft(change.record, Written::Row) else { return };
        let columns = self.relation.as_ref().map_or(&[][..], |(_, columns)| columns);
        // The assembler has checked it.
        let values = Tuple::parsed(tuple).map(|tuple| tuple.values());
        for (column, value) in columns.iter().zip(values.into_iter().flatten()) {
            let Value::Text(text) = value else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match column.as_str() {
                "id" => draft.id = Some(text),
                "aggregate_id" => draft.key = Some(text),
                "event_type" => draft.event_type = text,
                "event_version" => draft.version = Some(text),
                "correlation_id" => draft.correlation = Some(text),
                "source_service" => draft.service = text,
                "traceparent" => draft.traceparent = Some(text),
                "payload" => draft.payload = text,
                _ => {}
            }
        }
        self.held.push(draft);
    }

    fn change(&mut self, data: &[u8], change: &Change) {
        let Some(table) = self.published.get(&change.relation) else { return };
        let (Some(told), name) = (table.tell(data, &change.op), table.name.clone()) else { return };
        let Some(mut draft) = self.draft(change.record, Written::Change) else { return };
        draft.event_type = EventType::DatabaseChangeCaptured.name().to_owned();
        draft.key = told.key;
        draft.payload = told.payload;
        draft.table = Some(name);
        self.held.push(draft);
    }

    fn message(&mut self, content: &[u8], record: Lsn) {
        let Some(mut draft) = self.draft(record, Written::Message) else { return };
        match serde_json::from_slice::<Content>(content) {
            Ok(content) => {
                draft.event_type = content.event_type;
                draft.payload = content.payload.get().to_owned();
                draft.version = content.event_version;
                draft.id = content.event_id;
                draft.key = content.aggregate_id;
                draft.correlation = content.correlation_id;
                draft.traceparent = content.traceparent;
                draft.service = content.source_service.unwrap_or(draft.service);
            }
            // No type and no payload: the letter says what is missing.
            Err(_) => draft.payload = String::from_utf8_lossy(content).into_owned(),
        }
        self.held.push(draft);
    }
}

/// What a message holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    event_type: String,
    payload: Box<RawValue>,
    #[serde(default)]
    event_version: Option<String>,
    #[serde(default)]
    event_id: Option<String>,
    #[serde(default)]
    aggregate_id: Option<String>,
    #[serde(default)]
    correlation_id: Option<String>,
    #[serde(default)]
    source_service: Option<String>,
    #[serde(default)]
    traceparent: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{RelationColumn, ReplicaIdentity, Span, envelope::Queue};
    use std::{
        sync::Arc,
        time::{Duration, UNIX_EPOCH},
    };

    const LOGIN: &str = r#"{"eventType":"login","actingUserId":"u1","outcome":"success"}"#;

    /// A stream that is written by hand.
    struct Stream {
        outbox: Outbox,
        data: Vec<u8>,
        events: Vec<Event>,
    }

    impl Stream {
        fn new() -> Self {
            let origin = Origin {
                system_identifier: 1,
                epoch: Epoch(0),
                service: "shop".to_owned(),
                table: ("public".to_owned(), "outbox_event".to_owned()),
                published: Arc::default(),
            };
            let mut stream = Self { outbox: Outbox::new(origin), data: Vec::new(), events: Vec::new() };
            stream.relation(7, "outbox_event", &["id", "aggregate_id", "event_type", "correlation_id", "payload"]);
            stream
        }

        fn relation(&mut self, oid: u32, name: &str, columns: &[&str]) {
            let column = |name: &&str| RelationColumn {
                name: (*name).to_owned(),
                type_oid: 25,
                type_modifier: -1,
                key: *name == "id",
            };
            self.events.push(Event::Relation(Arc::new(Relation {
                oid,
                schema: "public".to_owned(),
                name: name.to_owned(),
                identity: ReplicaIdentity::Default,
                columns: columns.iter().map(column).collect(),
            })));
        }

        fn begin(&mut self, commit: u64) {
            let time = UNIX_EPOCH + Duration::from_secs(1);
            self.events.push(Event::Begin(Transaction { commit: Lsn(commit), time, xid: 5 }));
        }

        fn span(&mut self, bytes: &[u8]) -> Span {
            let start = u32::try_from(self.data.len()).unwrap();
            self.data.extend_from_slice(bytes);
            Span { start, len: u32::try_from(bytes.len()).unwrap() }
        }

        fn row(&mut self, oid: u32, record: u64, values: &[Option<&str>]) {
            let mut tuple = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
            for value in values {
                match value {
                    None => tuple.push(b'n'),
                    Some(text) => {
                        tuple.push(b't');
                        tuple.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                        tuple.extend_from_slice(text.as_bytes());
                    }
                }
            }
            let new = self.span(&tuple);
            self.events.push(Event::Change(Change { relation: oid, record: Lsn(record), op: Op::Insert { new } }));
        }

        fn login(&mut self, record: u64, id: Option<&str>, correlation: Option<&str>) {
            self.row(7, record, &[id, Some("user 1"), Some("SecurityEventOccurred"), correlation, Some(LOGIN)]);
        }

        fn message(&mut self, record: u64, transactional: bool, prefix: &[u8], content: &str) {
            let (prefix, content) = (self.span(prefix), self.span(content.as_bytes()));
            self.events.push(Event::Message { record: Lsn(record), transactional, prefix, content });
        }

        fn commit(&mut self, end: u64) {
            self.events.push(Event::Commit { end: Lsn(end) });
        }

        /// What came out, and what was outside of transactions.
        fn out(mut self) -> (Vec<Outgoing>, usize) {
            let (mut out, mut outside) = (Vec::new(), 0);
            for event in &self.events {
                outside += usize::from(self.outbox.take(&self.data, event, &mut out) == Seen::OutsideTransaction);
            }
            assert!(self.outbox.held.is_empty());
            (out, outside)
        }
    }

    fn correlation(event: &Outgoing) -> String {
        let body: serde_json::Value = serde_json::from_str(&event.body).unwrap();
        body["metadata"]["correlationId"].as_str().unwrap().to_owned()
    }

    #[test]
    fn rows_and_messages_come_in_the_order_of_the_transaction() {
        let mut stream = Stream::new();
        stream.begin(900);
        stream.login(100, Some("018f3b5e-7c1a-8000-8000-0123456789ab"), None);
        let message = format!(r#"{{"eventType":"SecurityEventOccurred","payload":{LOGIN},"aggregateId":"user 2"}}"#);
        stream.message(150, true, OUTBOX_PREFIX, &message);
        stream.row(8, 160, &[Some("a row of another table")]);
        stream.message(170, true, b"somebody else's", "{}");
        stream.commit(950);
        let (out, outside) = stream.out();
        let keys: Vec<_> = out.iter().map(|event| event.key.as_deref().unwrap()).collect();
        assert_eq!((keys, outside), (vec!["user 1", "user 2"], 0));
        assert!(out.iter().all(|event| event.queue == Queue::AuditLog && event.dead.is_none()), "{out:?}");
        assert_eq!(out[0].id, "018f3b5e-7c1a-8000-8000-0123456789ab");
        assert_eq!(correlation(&out[0]), correlation(&out[1]));
    }

    #[test]
    fn rows_of_one_record_have_ids_of_their_own() {
        let mut stream = Stream::new();
        for _ in 0..2 {
            stream.begin(900);
            for _ in 0..3 {
                stream.login(100, None, None);
            }
            stream.login(200, None, None);
            stream.commit(950);
        }
        let (out, _) = stream.out();
        let ids: Vec<_> = out.iter().map(|event| event.id.clone()).collect();
        assert_eq!(ids[..4], ids[4..], "a replay finds the same");
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!((out.len(), distinct.len()), (8, 4));
    }

    #[test]
    fn a_message_names_what_correlates_the_rows_from_its_place_on() {
        let mut stream = Stream::new();
        stream.begin(900);
        stream.login(100, None, None);
        stream.message(200, true, CORRELATION_PREFIX, "request 7");
        stream.login(300, None, None);
        stream.login(350, None, Some("its own"));
        stream.message(400, true, CORRELATION_PREFIX, "request 8");
        stream.login(500, None, None);
        stream.commit(950);
        stream.begin(1900);
        stream.login(1000, None, None);
        stream.commit(1950);
        let (out, _) = stream.out();
        let named: Vec<_> = out.iter().map(correlation).collect();
        assert_eq!(named[1..4], ["request 7", "its own", "request 8"]);
        assert!(named[0] != named[4] && named[0].len() == 36, "{named:?}");
    }

    #[test]
    fn a_row_that_comes_before_the_message_at_its_very_place_is_named_by_it() {
        let mut stream = Stream::new();
        stream.begin(900);
        // The message ended where the row began, in another part of the transaction.
        stream.login(200, None, None);
        stream.message(200, true, CORRELATION_PREFIX, "request 7");
        stream.login(300, None, None);
        stream.message(301, true, CORRELATION_PREFIX, "request 8");
        stream.commit(950);
        let (out, _) = stream.out();
        assert_eq!(out.iter().map(correlation).collect::<Vec<_>>(), ["request 7", "request 7"]);
    }

    #[test]
    fn what_is_no_event_comes_out_dead_and_stops_nothing() {
        let mut stream = Stream::new();
        stream.begin(900);
        stream.message(100, true, OUTBOX_PREFIX, "canary");
        stream.message(110, true, OUTBOX_PREFIX, r#"{"eventType": "SecurityEventOccurred"}"#);
        stream.row(7, 120, &[None, None, None, None, None]);
        stream.login(130, None, None);
        stream.commit(950);
        let (out, _) = stream.out();
        let dead: Vec<_> = out.iter().map(|event| event.dead.is_some()).collect();
        assert_eq!(dead, [true, true, true, false]);
        assert!(!out[0].dead.as_ref().unwrap().contains("canary"));
    }

    #[test]
    fn messages_outside_of_transactions_and_clean_up_are_no_events() {
        let mut stream = Stream::new();
        stream.message(50, false, OUTBOX_PREFIX, "{}");
        stream.begin(900);
        let old = stream.span(b"\x00\x01n");
        let op = Op::Delete { old, old_is_key: true };
        stream.events.push(Event::Change(Change { relation: 7, record: Lsn(100), op }));
        let op = Op::Update { old: None, old_is_key: false, new: old };
        stream.events.push(Event::Change(Change { relation: 7, record: Lsn(110), op }));
        stream.commit(950);
        // Renamed, it is the outbox no more; another table that takes its name is.
        stream.relation(7, "outbox_event_old", &["id"]);
        stream.relation(9, "outbox_event", &["payload", "event_type"]);
        stream.begin(1900);
        stream.login(1000, None, None);
        stream.row(9, 1100, &[Some(LOGIN), Some("SecurityEventOccurred")]);
        stream.commit(1950);
        let (out, outside) = stream.out();
        assert_eq!((out.len(), outside), (1, 1));
        assert_eq!((out[0].dead.as_deref(), out[0].key.as_deref()), (None, None));
    }
}
