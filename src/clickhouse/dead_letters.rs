//! Rows that their table can not take, kept in `_dead_letters` beside it.
//!
//! A row has a value that its column can not hold, or ClickHouse refuses it. The rows around it go
//! in, and it becomes a letter: its key, why, and an envelope with all that is needed to send it
//! again. A letter is written with the batch that it came in and before that batch counts as
//! durable, under the row's own version, so a replay writes the same letter again.
//!
//! What becomes of a change, half by half:
//!
//! - A row that can not be held becomes a letter. In ClickHouse its key stays as it was, so the row
//!   there is older than it should be until a later change of the key brings it home.
//! - The tombstone of a key change goes in all the same: the old key is gone.
//! - A tombstone whose own key can not be held becomes a letter too. No row can ever have landed
//!   under that key, so nothing is missing in ClickHouse; but there may be letters for it, and
//!   whoever sends those again must find that the row is gone.
//!
//! What is stored here is data and may be anything; what is logged and measured is the reason,
//! which never has a value in it.
//!
//! Many letters mean that the table is wrong and not its rows. [`ALLOWED`] of them, or one row in
//! [`SHARE`] where that is more, are taken; then the table stops.

use super::{
    batch::CellError,
    changelog::{LogOp, ORDINAL_COLUMN},
    column::push_varint,
    table::TableSpec,
    text::ValueError,
};
use crate::{config::Unrepresentable, event::Version, quote};
use serde_json::{Map, Value};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// The table of all letters.
pub const TABLE: &str = "_dead_letters";
/// So many rows are lost before a table stops, whatever their share.
pub const ALLOWED: u64 = 100;
/// Beyond [`ALLOWED`], one row of so many.
pub const SHARE: u64 = 100;
/// A table's losses are logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Whether `lost` rows of `all` are more than a table may lose.
pub fn too_many(lost: u64, all: u64) -> bool {
    lost > ALLOWED && lost > all / SHARE
}

/// What becomes of a value that its column can not hold, or of a row that ClickHouse refuses
/// without naming a column.
pub fn policy(spec: &TableSpec, column: Option<&str>) -> Unrepresentable {
    spec.options.unrepresentable(column.unwrap_or_default())
}

/// Whether a row that fails for this reason becomes a letter; if not, its table stops.
pub fn takes(spec: &TableSpec, error: &CellError) -> bool {
    match error {
        // The column takes NULL at the source by now: that is a change of the table's shape.
        CellError::Value { error: ValueError::Null, .. } => false,
        CellError::Value { column, .. } => policy(spec, Some(column)) != Unrepresentable::Fail,
        CellError::Protocol(_) => false,
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It inserted the row.
    Insert,
    /// It updated the row.
    Update,
    /// It removed the row, or its key.
    Delete,
    /// None: the initial copy read the row.
    Copy,
    /// It inserted or updated the row.
    Upsert,
}

impl Operation {
    /// What was done to the row of a changelog's entry. Only rows are ever lost.
    pub fn of(op: LogOp) -> Self {
        match op {
            LogOp::Delete | LogOp::UpdateBefore => Self::Delete,
            LogOp::UpdateAfter => Self::Update,
            LogOp::Copy => Self::Copy,
            LogOp::Insert | LogOp::Truncate | LogOp::Snapshot => Self::Insert,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Copy => "copy",
            Self::Upsert => "upsert",
        }
    }
}

/// Why a row is lost, in words without any value.
#[derive(Clone, Debug)]
pub struct Reason {
    class: Class,
    column: String,
    text: String,
}

/// The kinds of reasons: a metric's label.
#[derive(Clone, Copy, Debug)]
enum Class {
    Unrepresentable,
    Malformed,
    Refused,
}

impl Class {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Unrepresentable, "unrepresentable"), (Self::Malformed, "malformed"), (Self::Refused, "refused")];
}

impl Reason {
    /// ClickHouse refused the row; `why` names its error and holds no value.
    pub fn refused(why: String) -> Self {
        Self { class: Class::Refused, column: String::new(), text: why }
    }
}

impl From<&CellError> for Reason {
    fn from(error: &CellError) -> Self {
        match error {
            CellError::Value { column, error } => Self {
                class: match error {
                    ValueError::Unrepresentable(_) | ValueError::Null => Class::Unrepresentable,
                    ValueError::Malformed(_) => Class::Malformed,
                },
                column: column.clone(),
                text: error.to_string(),
            },
            CellError::Protocol(_) => Self { class: Class::Malformed, column: String::new(), text: error.to_string() },
        }
    }
}

/// The values of a lost row, by column.
#[derive(Debug, Default)]
pub struct Envelope {
    new: Option<Map<String, Value>>,
    old: Option<Map<String, Value>>,
    unchanged: Vec<String>,
}

impl Envelope {
    /// A value of the row as it is after the change; `None` is NULL.
    pub fn new_value(&mut self, column: &str, text: Option<&[u8]>) {
        self.new.get_or_insert_default().insert(column.to_owned(), json(text));
    }

    /// A value of the row, or of its key, as it was before.
    pub fn old_value(&mut self, column: &str, text: Option<&[u8]>) {
        self.old.get_or_insert_default().insert(column.to_owned(), json(text));
    }

    /// A column that the change left alone, and that the stream does not carry.
    pub fn unchanged(&mut self, column: &str) {
        self.unchanged.push(column.to_owned());
    }

    fn into_json(self) -> String {
        let mut all = Map::new();
        all.extend(self.new.map(|new| ("new".to_owned(), Value::Object(new))));
        all.extend(self.old.map(|old| ("old".to_owned(), Value::Object(old))));
        if !self.unchanged.is_empty() {
            all.insert("unchanged".to_owned(), self.unchanged.into());
        }
        Value::Object(all).to_string()
    }
}

/// The session's encoding is UTF-8, so a text form is nothing else.
fn json(text: Option<&[u8]>) -> Value {
    text.map_or(Value::Null, |text| Value::String(String::from_utf8_lossy(text).into_owned()))
}

/// A row that its table does not take.
#[derive(Debug)]
pub struct Letter {
    /// The version that it would have.
    pub version: Version,
    /// Its transaction and when that committed, where this is known.
    pub transaction: Option<(u32, SystemTime)>,
    /// What was done to it.
    pub operation: Operation,
    /// The text forms of its key's columns, in index order; an entry's ordinal in a changelog.
    pub key: Vec<Vec<u8>>,
    /// Why it is lost.
    pub reason: Reason,
    /// Its values.
    pub envelope: Envelope,
}

/// Letters of one table on their way, in the form in which they are sent.
#[derive(Debug, Default)]
pub struct Letters {
    rows: usize,
    data: Vec<u8>,
    by_class: [u64; Class::ALL.len()],
    last: Option<Reason>,
}

impl Letters {
    /// How many there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.data.capacity()
    }

    /// Adds a letter: a row of [`FIELDS`] in the RowBinary format.
    pub fn add(&mut self, spec: &TableSpec, letter: Letter) {
        let ordinal = spec.changelog.then(|| ORDINAL_COLUMN.to_owned());
        let names = spec.key.iter().map(|&column| spec.columns[column].name.clone());
        let key: Map<String, Value> =
            names.chain(ordinal).zip(letter.key.iter().map(|text| json(Some(text)))).collect();
        let out = &mut self.data;
        out.extend_from_slice(&letter.version.0.to_le_bytes());
        push_string(out, letter.operation.label().as_bytes());
        push_string(out, Value::Object(key).to_string().as_bytes());
        push_strings(out, &letter.key);
        push_string(out, letter.reason.column.as_bytes());
        push_string(out, letter.reason.text.as_bytes());
        push_string(out, letter.envelope.into_json().as_bytes());
        match letter.transaction {
            Some((xid, time)) => {
                out.push(0);
                out.extend_from_slice(&xid.to_le_bytes());
                let micros = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
                out.push(0);
                out.extend_from_slice(&micros.to_le_bytes());
            }
            None => out.extend_from_slice(&[1, 1]),
        }
        self.rows += 1;
        self.by_class[letter.reason.class as usize] += 1;
        self.last = Some(letter.reason);
    }

    /// Why the last one was lost: `column x: why`.
    pub fn last_reason(&self) -> String {
        match &self.last {
            Some(reason) if reason.column.is_empty() => reason.text.clone(),
            Some(reason) => format!("column {}: {}", reason.column, reason.text),
            None => String::new(),
        }
    }

    /// How many there are for each kind of reason.
    pub fn by_class(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Class::ALL.iter().zip(self.by_class).map(|((_, label), count)| (*label, count))
    }

    /// What is sent.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}

/// What a row in RowBinary has; the rest is the same for all rows of a table.
const FIELDS: &str = "version UInt128, operation String, key String, key_values Array(String), column_name String, \
                      reason String, envelope String, xid Nullable(UInt32), committed_at Nullable(DateTime64(6, \\'UTC\\'))";

/// The statement that takes letters of a table.
pub fn insert_statement(slot: &str, spec: &TableSpec) -> String {
    let text = quote::clickhouse_string;
    format!(
        "INSERT INTO {TABLE} (slot, oid, schema_name, table_name, target, commit_lsn, version, operation, key, key_values, \
         column_name, reason, envelope, xid, committed_at) SELECT {}, {}, {}, {}, {}, \
         toUInt64(bitAnd(bitShiftRight(version, 64), toUInt128(72057594037927935))), version, operation, key, key_values, \
         column_name, reason, envelope, xid, committed_at FROM input('{FIELDS}') FORMAT RowBinary",
        text(slot),
        spec.oid,
        text(&spec.schema),
        text(&spec.name),
        text(&spec.target),
    )
}

pub(super) fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    push_varint(out, text.len());
    out.extend_from_slice(text);
}

pub(super) fn push_strings(out: &mut Vec<u8>, texts: &[impl AsRef<[u8]>]) {
    push_varint(out, texts.len());
    texts.iter().for_each(|text| push_string(out, text.as_ref()));
}

/// What a table has lost since the session began.
#[derive(Debug, Default)]
pub struct Losses {
    received: AtomicU64,
    lost: AtomicU64,
    /// Whether there are letters of changes of this table, from any session.
    known: AtomicU8,
    unsaid: Mutex<(u64, Option<Instant>)>,
}

const SOME: u8 = 1;
const NONE: u8 = 2;

impl Losses {
    /// Counts rows that came, and says whether those that were lost are too many: then how many of
    /// how many.
    pub fn count(&self, received: usize, lost: usize) -> Result<(), (u64, u64)> {
        let all = self.received.fetch_add(received as u64, Ordering::Relaxed) + received as u64;
        let lost = self.lost.fetch_add(lost as u64, Ordering::Relaxed) + lost as u64;
        if too_many(lost, all) { Err((lost, all)) } else { Ok(()) }
    }

    /// Whether there are letters of changes of the table; `None` if nobody has looked.
    pub fn any(&self) -> Option<bool> {
        match self.known.load(Ordering::SeqCst) {
            SOME => Some(true),
            NONE => Some(false),
            _ => None,
        }
    }

    /// Notes what a look into [`TABLE`] has found. Letters that came since are not forgotten.
    pub fn found(&self, any: bool) {
        let found = if any { SOME } else { NONE };
        let _ = self.known.compare_exchange(0, found, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Notes that letters are about to be written.
    pub fn begin(&self) {
        self.known.store(SOME, Ordering::SeqCst);
    }

    /// How many losses are to be told now; `None` if that was done a moment ago.
    pub fn to_tell(&self, rows: usize) -> Option<u64> {
        let mut unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        unsaid.0 += rows as u64;
        if unsaid.1.is_some_and(|said| said.elapsed() < LOG_INTERVAL) {
            return None;
        }
        unsaid.1 = Some(Instant::now());
        Some(std::mem::take(&mut unsaid.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_rows_or_one_in_a_hundred_may_be_lost() {
        for (lost, all, expected) in
            [(100, 100, false), (101, 101, true), (101, 10_100, false), (101, 10_099, true), (5_000, 500_000, false)]
        {
            assert_eq!(too_many(lost, all), expected, "{lost} of {all}");
        }
    }

    #[test]
    fn losses_are_counted_over_batches_and_told_now_and_then() {
        let losses = Losses::default();
        assert_eq!(losses.count(1_000, 60), Ok(()));
        assert_eq!(losses.count(40, 40), Ok(()));
        assert_eq!(losses.count(10, 1), Err((101, 1_050)));
        assert_eq!((losses.to_tell(3), losses.to_tell(4)), (Some(3), None));
    }

    #[test]
    fn a_look_that_found_nothing_does_not_hide_what_came_since() {
        let losses = Losses::default();
        assert_eq!(losses.any(), None);
        losses.begin();
        losses.found(false);
        assert_eq!(losses.any(), Some(true));
    }

    #[test]
    fn an_envelope_tells_null_from_empty_and_from_what_is_not_there() {
        let mut envelope = Envelope::default();
        envelope.new_value("a", Some(b""));
        envelope.new_value("b", None);
        envelope.unchanged("c");
        envelope.old_value("id", Some("\"ö\"".as_bytes()));
        assert_eq!(envelope.into_json(), r#"{"new":{"a":"","b":null},"old":{"id":"\"ö\""},"unchanged":["c"]}"#);
    }
}
