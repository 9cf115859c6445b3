//! What PostgreSQL writes into its sockets.

use crate::wal::{Note, OUTBOX, Op, TABLES, Transaction};
use bytes::{BufMut, BytesMut};
use serde_json::json;

const INT8: u32 = 20;
const TEXT: u32 = 25;
/// The columns of the outbox table that matter.
const OUTBOX_COLUMNS: [&str; 4] = ["id", "aggregate_id", "event_type", "payload"];

/// One message with its tag and length.
pub(crate) fn message(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    out.put_u32(4 + body.len() as u32);
    out.put_slice(body);
}

/// An ErrorResponse.
pub(crate) fn error(out: &mut BytesMut, code: &str, text: &str) {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0");
    message(out, b'E', body.as_bytes());
}

/// One row of text.
pub(crate) fn data_row(out: &mut BytesMut, value: &[u8]) {
    let mut body = BytesMut::new();
    body.put_u16(1);
    body.put_u32(value.len() as u32);
    body.put_slice(value);
    message(out, b'D', &body);
}

/// A description of rows of one column.
pub(crate) fn row_description(out: &mut BytesMut, type_oid: u32) {
    let mut body = BytesMut::new();
    body.put_u16(1);
    body.put_slice(b"column\0");
    body.put_u32(0);
    body.put_u16(0);
    body.put_u32(type_oid);
    body.put_i16(-1);
    body.put_i32(-1);
    body.put_u16(0);
    message(out, b'T', &body);
}

/// That everything before this position was sent.
pub(crate) fn keepalive(out: &mut BytesMut, end: u64, reply: bool) {
    let mut body = BytesMut::new();
    body.put_u8(b'k');
    body.put_u64(end);
    body.put_u64(0);
    body.put_u8(reply.into());
    message(out, b'd', &body);
}

/// A whole transaction; `announced` are the relations that this connection knows.
pub(crate) fn transaction(out: &mut BytesMut, one: &Transaction, announced: &mut Vec<u32>) {
    xlog(out, one.records.first().map_or(one.commit, |record| record.lsn), |body| {
        body.put_u8(b'B');
        body.put_u64(one.commit);
        body.put_u64(0);
        body.put_u32(700);
    });
    for record in &one.records {
        for oid in relations(&record.op) {
            if !announced.contains(&oid) {
                announced.push(oid);
                xlog(out, 0, |body| relation(body, oid));
            }
        }
        xlog(out, record.lsn, |body| change(body, record.lsn, &record.op));
    }
    xlog(out, one.commit, |body| {
        body.put_slice(b"C\0");
        body.put_u64(one.commit);
        body.put_u64(one.end);
        body.put_u64(0);
    });
}

fn xlog(out: &mut BytesMut, at: u64, put: impl FnOnce(&mut BytesMut)) {
    let mut body = BytesMut::new();
    body.put_u8(b'w');
    body.put_u64(at);
    body.put_u64(at);
    body.put_u64(0);
    put(&mut body);
    message(out, b'd', &body);
}

fn relations(op: &Op) -> Vec<u32> {
    match op {
        Op::Insert { table, .. } | Op::Update { table, .. } | Op::Delete { table, .. } => vec![TABLES[*table].0],
        Op::Truncate { tables } => tables.iter().map(|table| TABLES[*table].0).collect(),
        Op::Row(_) => vec![OUTBOX],
        Op::Message(_) => Vec::new(),
    }
}

fn relation(body: &mut BytesMut, oid: u32) {
    let table = TABLES.iter().find(|table| table.0 == oid);
    let (name, full) = table.map_or(("outbox_event", false), |table| (table.1, table.2));
    let columns: &[(&str, u32)] =
        if table.is_some() { &[("id", INT8), ("value", TEXT)] } else { &OUTBOX_COLUMNS.map(|name| (name, TEXT)) };
    body.put_u8(b'R');
    body.put_u32(oid);
    body.put_slice(b"public\0");
    body.put_slice(name.as_bytes());
    body.put_u8(0);
    body.put_u8(if full { b'f' } else { b'd' });
    body.put_u16(columns.len() as u16);
    for (index, (name, ty)) in columns.iter().enumerate() {
        body.put_u8((full || index == 0).into());
        body.put_slice(name.as_bytes());
        body.put_u8(0);
        body.put_u32(*ty);
        body.put_i32(-1);
    }
}

fn change(body: &mut BytesMut, lsn: u64, op: &Op) {
    match op {
        Op::Insert { table, key, value } => {
            body.put_u8(b'I');
            body.put_u32(TABLES[*table].0);
            body.put_u8(b'N');
            tuple(body, &[Some(&key.to_string()), Some(value)]);
        }
        Op::Update { table, old, new } => {
            body.put_u8(b'U');
            body.put_u32(TABLES[*table].0);
            match TABLES[*table].2 {
                true => old_row(body, true, old.0, &old.1),
                false if old.0 != new.0 => old_row(body, false, old.0, &old.1),
                false => {}
            }
            body.put_u8(b'N');
            tuple(body, &[Some(&new.0.to_string()), Some(&new.1)]);
        }
        Op::Delete { table, key, value } => {
            body.put_u8(b'D');
            body.put_u32(TABLES[*table].0);
            old_row(body, TABLES[*table].2, *key, value);
        }
        Op::Truncate { tables } => {
            body.put_u8(b'T');
            body.put_u32(tables.len() as u32);
            body.put_u8(0);
            tables.iter().for_each(|table| body.put_u32(TABLES[*table].0));
        }
        Op::Row(note) => {
            body.put_u8(b'I');
            body.put_u32(OUTBOX);
            body.put_u8(b'N');
            let payload = payload(note).to_string();
            tuple(body, &[note.id.as_deref(), note.key.as_deref(), Some(event_type(note)), Some(&payload)]);
        }
        Op::Message(note) => {
            let content = json!({
                "eventType": event_type(note), "payload": payload(note), "eventId": note.id, "aggregateId": note.key,
            });
            let content = content.to_string();
            body.put_u8(b'M');
            body.put_u8(1);
            body.put_u64(lsn);
            body.put_slice(b"walhouse.outbox\0");
            body.put_u32(content.len() as u32);
            body.put_slice(content.as_bytes());
        }
    }
}

fn event_type(note: &Note) -> &'static str {
    if note.fits { "SecurityEventOccurred" } else { "NothingThatIsKnown" }
}

fn payload(note: &Note) -> serde_json::Value {
    json!({ "eventType": "login", "actingUserId": note.token, "outcome": "success" })
}

fn old_row(body: &mut BytesMut, full: bool, key: i64, value: &str) {
    body.put_u8(if full { b'O' } else { b'K' });
    tuple(body, &[Some(&key.to_string()), full.then_some(value)]);
}

fn tuple(body: &mut BytesMut, values: &[Option<&str>]) {
    body.put_u16(values.len() as u16);
    for value in values {
        match value {
            None => body.put_u8(b'n'),
            Some(text) => {
                body.put_u8(b't');
                body.put_u32(text.len() as u32);
                body.put_slice(text.as_bytes());
            }
        }
    }
}
