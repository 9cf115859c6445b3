//! Unchanged TOAST: values that an update left alone and that the stream therefore does not carry.
//!
//! Each is resolved *as of its change*, never as of now, in this order:
//!
//! 1. the old tuple, if it has the value (done when the row entered its batch);
//! 2. the row before it in the same batch, under the old key;
//! 3. ClickHouse, once all earlier inserts of the table are durable: the *new* key's row at
//!    exactly this version (a replay), then the *old* key's newest row below this version;
//! 4. PostgreSQL, by the new key, through a snapshot in which the transaction is visible. If the
//!    row is gone there, its delete or key change is on the way, and the row is left out.
//!
//! A tombstone in 2 or 3 means not found. What 4 and the initial copy read comes from the future
//! of the change. That is harmless for the key it is stored under, since the changes up to that
//! future are on their way to the same key; but a key change would carry it to another row for
//! good. So a key change whose commit is at or before the table's last read from PostgreSQL skips
//! 2 and 3. That last read is stored before the rows that were read land, and looked at after the
//! lookup, so a row that was seen has its read on record.
//!
//! Of what an operator has delivered again, ClickHouse's rows are what is to be put right: 3 is passed over, and 4 has the
//! value that the row has by now, which the changes of it that follow will have too.
//!
//! Lookups of either side are made for many rows at once. What a read from PostgreSQL alters for the key changes behind it
//! they are asked for when their turn comes.
//!
//! An INSERT can carry the marker too (an UPDATE that enters a row filter): only 4 is right.
//!
//! A row that became a dead letter is not in ClickHouse, and what is there under its key is older
//! than it should be: its values must not come back to life. In the batch such a row leaves a mark,
//! and means not found. In ClickHouse, the newest row of the old key counts only if no dead letter
//! of that key is newer. The letters are asked for that, by the key's text: the change before this
//! one of the same row had the very text that this one's old key has. They were durable before
//! anything that comes after them is looked up, and stay, so this holds over restarts and in
//! replays, and nothing is kept in memory but whether a table has any. Letters of the copy do not
//! count: any row of a change is newer than what the copy read.

use super::{
    batch::{Batch, CellError, Slot, Waiting},
    block::{Block, ColumnSpec},
    dead_letters::{self, push_strings},
    retrying,
    state::State,
    table::{IS_DELETED, Table, VERSION},
    text::ValueError,
    types::ColumnType,
};
use crate::{
    event::Lsn,
    lane::{RowError, RowRequest, RowSource, RowValues, RowsRequest},
    quote,
    retry::Kind,
    telemetry::names,
};
use clickhouse::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    ops::Range,
    sync::Arc,
};

/// Rows that wait are looked up this many at once, at most. Each asks two questions.
const MAX_SLICE: usize = 256;
/// What one lookup is expected to bring back, in bytes, at most.
const SLICE_BYTES: usize = 4 * 1024 * 1024;

/// When a row was inserted: the number of its part's first block. Of rows with one version, ClickHouse shows the one that was
/// inserted last; what a replay has put right, and what it was put right from, stand side by side until they are merged.
const INSERTED: &str = "toUInt64OrZero(splitByChar('_', t._part)[2])";

/// A value could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ToastError {
    /// ClickHouse could not be asked.
    #[error("a lookup of unchanged TOAST failed: {}", super::client::describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// PostgreSQL could not be asked.
    #[error(transparent)]
    Source(#[from] RowError),
    /// A value that its column can not hold.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// ClickHouse's answer is not of the form that was asked for.
    #[error("a lookup of unchanged TOAST gave an answer that is not understood: {0}")]
    Answer(ValueError),
}

/// What resolving needs.
pub struct Resolver<'a> {
    /// The table.
    pub table: &'a Table,
    /// ClickHouse.
    pub client: &'a Client,
    /// PostgreSQL.
    pub source: &'a dyn RowSource,
    /// Where the last read from PostgreSQL is stored.
    pub state: &'a State,
    /// Of commits before this, what ClickHouse has is not to be trusted.
    pub repairing: Lsn,
}

/// What ClickHouse has for a slice of rows: the values that some row lacks, by the number of the
/// row that asked.
struct Found {
    columns: Vec<usize>,
    values: Block,
    row_of: Vec<Option<usize>>,
    /// The version of the row, if it is the old key's newest one.
    newest: Vec<Option<u128>>,
}

impl Resolver<'_> {
    /// Completes every row of `batch` that waits. Earlier inserts of the table must be durable.
    pub async fn resolve(&self, batch: &mut Batch) -> Result<(), ToastError> {
        let waiting = std::mem::take(&mut batch.waiting);
        let mut rows: Vec<Option<usize>> = Vec::with_capacity(waiting.len());
        let before_read = self.table.read_until();
        while rows.len() < waiting.len() {
            let slice = (SLICE_BYTES / self.table.lookup_bytes().max(1)).clamp(1, MAX_SLICE);
            let range = rows.len()..waiting.len().min(rows.len() + slice);
            let before = batch.block.data_bytes();
            self.resolve_slice(batch, &waiting, range.clone(), &mut rows).await?;
            self.table.note_lookup(batch.block.data_bytes().saturating_sub(before) / range.len());
        }
        if self.table.read_until() > before_read {
            let position = self.table.read_until();
            self.state
                .update_target(self.table.spec.oid, &self.table.uuid, |table| {
                    table.read_until = table.read_until.max(position)
                })
                .await?;
        }
        Ok(())
    }

    /// Completes the rows in `range`; `rows` is where those before it are in the batch.
    async fn resolve_slice(
        &self,
        batch: &mut Batch,
        waiting: &[Waiting],
        range: Range<usize>,
        rows: &mut Vec<Option<usize>>,
    ) -> Result<(), ToastError> {
        let found = self.look_up(batch, waiting, range.clone()).await?;
        let mut read = BTreeMap::new();
        for index in range.clone() {
            let row = &waiting[index];
            let asked = index - range.start;
            let place = self.place(row, rows, &found, asked);
            if matches!(place, Place::Source) && !read.contains_key(&index) {
                let needs = |later: &usize| self.needs_source(&waiting[*later], rows, &found, later - range.start);
                let later = (index + 1..range.end).filter(|later| !read.contains_key(later)).filter(needs);
                let asked: Vec<usize> = std::iter::once(index).chain(later).collect();
                let answers = self.read(waiting, &asked).await?;
                read.extend(asked.into_iter().zip(answers));
            }
            let read = match (place, read.remove(&index)) {
                (Place::Source, None) => return Err(unanswered().into()),
                (_, read) => read.flatten(),
            };
            let row_number = self.complete(batch, row, place, &found, read)?;
            rows.push(row_number);
        }
        Ok(())
    }

    /// Whether a change would carry what was read from its future to another row.
    fn is_from_the_future(&self, row: &Waiting) -> bool {
        row.key_change && row.at.version.commit() <= self.table.read_until()
    }

    /// Where the values of a row are to be taken from.
    fn place(&self, row: &Waiting, rows: &[Option<usize>], found: &Found, asked: usize) -> Place {
        if row.alone || self.is_from_the_future(row) {
            return Place::Source;
        }
        match row.before {
            Some(Slot::Row(row)) => Place::Batch(row),
            Some(Slot::Waiting(index)) => rows.get(index).copied().flatten().map_or(Place::Source, Place::Batch),
            Some(Slot::Gone | Slot::Lost) => Place::Source,
            None => found.row_of[asked].map_or(Place::Source, Place::Found),
        }
    }

    /// Whether [`place`](Self::place) will be PostgreSQL for a row whose turn has not come, whatever becomes of those before.
    fn needs_source(&self, row: &Waiting, rows: &[Option<usize>], found: &Found, asked: usize) -> bool {
        match row.before {
            Some(Slot::Waiting(index)) if index >= rows.len() => row.alone || self.is_from_the_future(row),
            _ => matches!(self.place(row, rows, found, asked), Place::Source),
        }
    }

    /// Appends the complete row to the batch; `None` if it is to be left out. `read` is what PostgreSQL has of it, if it is
    /// there.
    fn complete(
        &self,
        batch: &mut Batch,
        row: &Waiting,
        place: Place,
        found: &Found,
        read: Option<RowValues>,
    ) -> Result<Option<usize>, ToastError> {
        let spec = &self.table.spec;
        let lacking: Vec<_> = row.lacking().collect();
        metrics::counter!(names::TOAST_LOOKUPS, "place" => place.label()).increment(1);
        let read = match (place, read) {
            (Place::Source, None) => return Ok(None),
            (_, read) => read.unwrap_or_default(),
        };
        for column in 0..spec.columns.len() {
            let into = batch.block.column_mut(column);
            let pushed = match lacking.iter().position(|&lacks| lacks == column) {
                None => match row.text(column) {
                    Some(text) => into.push_text(text),
                    None => into.push_null(),
                },
                Some(nth) => match place {
                    Place::Batch(earlier) => {
                        into.push_copy(earlier);
                        Ok(())
                    }
                    Place::Found(number) => {
                        let of = found.columns.iter().position(|&other| other == column);
                        of.map(|of| into.push_from(found.values.column(of), number))
                            .ok_or(ValueError::Malformed("a value that was not looked up"))
                    }
                    Place::Source => match read.get(nth).and_then(Option::as_deref) {
                        Some(text) => into.push_text(text),
                        None => into.push_null(),
                    },
                },
            };
            if let Err(error) = pushed {
                batch.block.rollback_row();
                let error = CellError::Value { column: spec.columns[column].name.clone(), error };
                if !dead_letters::takes(spec, &error) {
                    return Err(error.into());
                }
                batch.lose_waiting(spec, row, &error)?;
                return Ok(None);
            }
        }
        let number = batch.block.rows();
        batch.block.commit_row(row.at.version.0, false);
        Ok(Some(number))
    }

    /// Reads what rows lack from PostgreSQL, for as many of them as come at once; `None` for one that is gone there.
    async fn read(&self, waiting: &[Waiting], asked: &[usize]) -> Result<Vec<Option<RowValues>>, ToastError> {
        let spec = &self.table.spec;
        let name = |column: usize| spec.sources[column].name.clone();
        let row = |index: &usize| {
            let row = &waiting[*index];
            let key = spec.key.iter().map(|&column| row.text(column).unwrap_or_default().to_vec());
            RowRequest { key: key.collect(), columns: row.lacking().map(name).collect(), xid: row.at.xid }
        };
        let request = RowsRequest {
            table: spec.oid,
            key: spec.key.iter().map(|&column| name(column)).collect(),
            filter: spec.filter.clone(),
            rows: asked.iter().map(row).collect(),
        };
        let answer = self.source.current(request).await?;
        self.table.note_read(answer.position);
        Ok(answer.rows)
    }

    /// Asks ClickHouse for the rows in `range` that have no row before them in the batch.
    async fn look_up(&self, batch: &Batch, all: &[Waiting], range: Range<usize>) -> Result<Found, ToastError> {
        let slice = &all[range];
        let asks = |row: &&Waiting| {
            let is_repaired = row.at.version.commit() < self.repairing;
            row.before.is_none() && !row.alone && !is_repaired && !self.is_from_the_future(row)
        };
        let columns: Vec<usize> =
            slice.iter().filter(asks).flat_map(Waiting::lacking).collect::<BTreeSet<_>>().into_iter().collect();
        let specs: Arc<[ColumnSpec]> = columns.iter().map(|&column| self.table.spec.columns[column].clone()).collect();
        let mut found = Found {
            columns,
            values: Block::new(specs),
            row_of: vec![None; slice.len()],
            newest: vec![None; slice.len()],
        };
        if found.columns.is_empty() {
            return Ok(found);
        }
        let mut questions = self.questions();
        for (number, row) in slice.iter().enumerate().filter(|(_, row)| asks(row)) {
            // The new key at exactly this version, then the old key below it.
            for (key, exactly) in [(row.keys, true), (row.keys + 1, false)] {
                let mut n = &(number as u32).to_le_bytes()[..];
                questions.column_mut(0).push_row_binary(&mut n).map_err(ToastError::Answer)?;
                for place in 0..self.table.spec.key.len() {
                    questions.column_mut(place + 1).push_from(batch.keys.column(place), key);
                }
                questions.commit_row(row.at.version.0, exactly);
            }
        }
        let sql = self.sql(&questions, &found.columns);
        let answer = self.ask("look up unchanged TOAST", &sql, &found.columns).await?;
        read_answer(&answer, &mut found).map_err(ToastError::Answer)?;
        if self.has_letters().await? {
            self.leave_out_lost(slice, &mut found).await?;
        }
        Ok(found)
    }

    /// Whether a change of the table ever became a dead letter.
    async fn has_letters(&self) -> Result<bool, ToastError> {
        if let Some(any) = self.table.losses.any() {
            return Ok(any);
        }
        let sql = format!("SELECT count() FROM {} WHERE {}", dead_letters::TABLE, self.own_letters());
        let count: u64 = retrying("look for dead letters", || self.client.query_raw(&sql).fetch_one()).await?;
        self.table.losses.found(count > 0);
        Ok(count > 0)
    }

    fn own_letters(&self) -> String {
        let slot = quote::clickhouse_string(self.state.slot());
        format!("slot = {slot} AND oid = {} AND version > 0", self.table.spec.oid)
    }

    /// Forgets each row that was found under an old key of which a dead letter is newer.
    async fn leave_out_lost(&self, slice: &[Waiting], found: &mut Found) -> Result<(), ToastError> {
        let (spec, mut questions) = (&self.table.spec, Vec::new());
        for (number, row) in slice.iter().enumerate().filter(|(number, _)| found.newest[*number].is_some()) {
            questions.extend_from_slice(&(number as u32).to_le_bytes());
            let key = row.old_key(spec).zip(&spec.key);
            let shown = key.map(|(text, &column)| spec.columns[column].shown(Some(text)).unwrap_or_default());
            push_strings(&mut questions, &shown.collect::<Vec<_>>());
            questions.extend_from_slice(&row.at.version.0.to_le_bytes());
        }
        if questions.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "WITH q AS (SELECT * FROM format(RowBinary, 'n UInt32, k Array(String), v UInt128', unhex('{}'))) \
             SELECT q.n AS n, max(l.version) AS newest FROM {} AS l INNER JOIN q ON l.key_values = q.k \
             WHERE {} AND l.key_values IN (SELECT k FROM q) AND l.version < q.v GROUP BY n",
            hex(&questions),
            dead_letters::TABLE,
            self.own_letters(),
        );
        let answer = self.ask("look for dead letters", &sql, &[]).await?;
        let (answers, rest) = answer.as_chunks::<20>();
        if !rest.is_empty() {
            return Err(ToastError::Answer(ValueError::Malformed("it ends early")));
        }
        for answer in answers {
            let (number, version) = answer.split_at(4);
            let number = u32::from_le_bytes(number.try_into().unwrap_or_default()) as usize;
            let version = u128::from_le_bytes(version.try_into().unwrap_or_default());
            if found.newest.get(number).copied().flatten().is_some_and(|newest| newest < version) {
                found.row_of[number] = None;
            }
        }
        Ok(())
    }

    /// Asks ClickHouse; `columns` are those of the table that the answer has.
    async fn ask(&self, doing: &'static str, sql: &str, columns: &[usize]) -> Result<Vec<u8>, ToastError> {
        let has_json = columns.iter().any(|&column| self.table.spec.columns[column].ty == ColumnType::Json);
        let answer = retrying(doing, || async {
            // Not in the statement itself: there they come too late for its own parsing.
            let query = self.client.query_raw(sql).with_setting("max_query_size", "1073741824");
            // Older servers know neither this setting nor the type.
            let query =
                if has_json { query.with_setting("output_format_binary_write_json_as_string", "1") } else { query };
            let mut cursor = query.with_setting("max_ast_elements", "1000000").fetch_bytes("RowBinary")?;
            // Not `collect`, which keeps the chunks and then needs their room once more.
            let mut bytes = Vec::new();
            while let Some(chunk) = cursor.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        });
        Ok(answer.await?)
    }

    /// A block for the questions: number, key, and in the block's own columns the version and
    /// whether exactly that version is asked for.
    fn questions(&self) -> Block {
        let number = ColumnSpec::new("n", ColumnType::UInt32, false);
        let keys = self.table.spec.key.iter().enumerate().map(|(place, &column)| {
            ColumnSpec::new(format!("k{place}"), self.table.spec.columns[column].ty.clone(), false)
        });
        Block::new(std::iter::once(number).chain(keys).collect())
    }

    /// The lookup. The questions ride along as a table of their own, in hexadecimal: keys of any
    /// type, nothing to quote, and the primary key's index is used.
    fn sql(&self, questions: &Block, columns: &[usize]) -> String {
        let spec = &self.table.spec;
        let quoted = |column: &usize| format!("t.{}", quote::clickhouse(&spec.columns[*column].name));
        let keys: Vec<String> = spec.key.iter().map(quoted).collect();
        let asked: Vec<String> = (0..keys.len()).map(|place| format!("k{place}")).collect();
        let same: Vec<String> = keys.iter().zip(&asked).map(|(key, asked)| format!("{key} = q.{asked}")).collect();
        let wanted = columns.iter().flat_map(|&column| spec.columns[column].native());
        let wanted: Vec<String> = wanted.map(|(name, _)| format!("t.{}", quote::clickhouse(&name))).collect();
        let (hex, age) = (hex(&questions.write_native()), format!("(t.{VERSION}, {INSERTED})"));
        let (target, keys, asked) = (quote::clickhouse(&spec.target), keys.join(", "), asked.join(", "));
        format!(
            "WITH q AS (SELECT * FROM format(Native, unhex('{hex}'))) \
             SELECT q.n AS n, q.{IS_DELETED} AS exactly, argMax(t.{IS_DELETED}, {age}) AS gone, \
             max(t.{VERSION}) AS newest, argMax(tuple({}), {age}) AS found FROM {target} AS t INNER JOIN q ON {} \
             WHERE ({keys}) IN (SELECT {asked} FROM q) \
             AND if(q.{IS_DELETED} = 1, t.{VERSION} = q.{VERSION}, t.{VERSION} < q.{VERSION}) \
             GROUP BY n, exactly ORDER BY n, exactly DESC",
            wanted.join(", "),
            same.join(" AND "),
        )
    }
}

/// A row that nobody has spoken of is not one that is gone.
fn unanswered() -> RowError {
    RowError { kind: Kind::Transient, of_the_row: false, message: "there was no answer for the row".to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String can not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Where the values of a row come from.
#[derive(Clone, Copy, Debug)]
enum Place {
    Batch(usize),
    Found(usize),
    Source,
}

impl Place {
    fn label(self) -> &'static str {
        match self {
            Self::Batch(_) => "batch",
            Self::Found(_) => "clickhouse",
            Self::Source => "postgres",
        }
    }
}

/// Reads rows of (number, exactly, gone, version, values…); the first that is there counts.
fn read_answer(mut input: &[u8], found: &mut Found) -> Result<(), ValueError> {
    while !input.is_empty() {
        let (head, rest) = input.split_first_chunk::<6>().ok_or(ValueError::Malformed("it ends early"))?;
        let (version, rest) = rest.split_first_chunk::<16>().ok_or(ValueError::Malformed("it ends early"))?;
        input = rest;
        let [a, b, c, d, exactly, gone] = *head;
        for column in 0..found.columns.len() {
            found.values.column_mut(column).push_row_binary(&mut input)?;
        }
        let number = found.values.rows();
        found.values.commit_row(0, false);
        let index = u32::from_le_bytes([a, b, c, d]) as usize;
        let asked = found.row_of.get_mut(index).zip(found.newest.get_mut(index));
        let (row, newest) = asked.ok_or(ValueError::Malformed("a number that was not asked"))?;
        if gone == 0 && row.is_none() {
            *row = Some(number);
            *newest = (exactly == 0).then_some(u128::from_le_bytes(*version));
        }
    }
    Ok(())
}
