//! Changes that come once more, by way of a queue: each lands with the version that it had, or not at all.
//!
//! Versions decide between rows of one key, so a change may come at any time, and twice. Three things they do not decide, and
//! a change that meets one of them is left out:
//! - a copy that was made after it: copied rows have the lowest version of all, and know of the change already;
//! - a TRUNCATE that came after it, which took away what was older;
//! - a table that is stopped: it is to be copied anew, and the copy will know of it.
//!
//! These are looked up before the insert, and once more after it: a row that landed while its table was truncated is taken
//! away again.
//!
//! Nothing is made up: a column that a change left alone has no value in its event, and what ClickHouse has under the key may
//! not be the row that it was left alone in. One that is younger than the change, or has another name by now, has none either.
//! Then the table has to be copied anew.

use super::{
    block::{Block, ColumnSpec},
    client, ddl,
    insert::{insert_once, is_refusal},
    presence::presence,
    state::{self, Checkpoint, TableRecord},
    table::{TableSpec, VERSION},
    text::DateTimeRange,
};
use crate::{
    config::Config,
    event::{Epoch, Lsn, Version},
    quote,
};
use clickhouse::{Client, error::Error};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::OnceCell;

/// A row, or the key of one, in PostgreSQL's text form, by column; `None` is NULL.
pub type Row = BTreeMap<String, Option<String>>;

/// A change as its event tells it.
#[derive(Clone, Debug)]
pub struct Resent {
    /// The table: its name, with its schema if that is another than `public`.
    pub table: String,
    /// The history that its position belongs to.
    pub epoch: Epoch,
    /// The commit record of its transaction.
    pub commit: Lsn,
    /// Its own record.
    pub record: Lsn,
    /// What identified the row before.
    pub before: Option<Row>,
    /// The row as it was then; `None` if it was gone.
    pub after: Option<Row>,
}

impl Resent {
    fn version(&self) -> Version {
        Version::new(self.epoch, self.commit, self.record)
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is in its table.
    Landed,
    /// Something later has made it void; what.
    Superseded(&'static str),
}

/// Why a change is not in its table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// It never will be.
    #[error("{0}")]
    Definite(String),
    /// Later it may be.
    #[error("{0}")]
    Transient(String),
    /// ClickHouse is away.
    #[error("{0}")]
    Unavailable(String),
}

type Outcome = Result<Applied, ApplyError>;

/// Lands changes in the targets of one slot, whose lock it needs not hold.
pub struct Applier {
    client: Client,
    config: Arc<Config>,
    range: OnceCell<DateTimeRange>,
}

impl Applier {
    /// One that writes with `client`, whose database is chosen.
    pub fn new(client: Client, config: Arc<Config>) -> Self {
        Self { client, config, range: OnceCell::new() }
    }

    /// Lands changes, and says of each what became of it.
    pub async fn apply(&self, changes: &[Resent]) -> Vec<Outcome> {
        let known = match self.look(changes).await {
            Ok(known) => known,
            Err(error) => return vec![Err(away(&error)); changes.len()],
        };
        let mut outcomes: Vec<Option<Outcome>> = changes.iter().map(|change| known.void(change)).collect();
        let mut blocks: Vec<Rows> = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            if outcomes[index].is_none()
                && let Err(why) = self.add(&mut blocks, &known, index, change)
            {
                outcomes[index] = Some(Err(why));
            }
        }
        for rows in blocks {
            let result = self.land(&rows).await;
            for (index, outcome) in rows.changes.iter().zip(result) {
                outcomes[*index] = Some(outcome);
            }
        }
        if let Err(error) = self.look_again(changes, &mut outcomes).await {
            return vec![Err(away(&error)); changes.len()];
        }
        let lost = || Err(ApplyError::Transient("it was not dealt with".to_owned()));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
    }

    async fn look(&self, changes: &[Resent]) -> Result<Known, Error> {
        self.range.get_or_try_init(|| ddl::datetime_range(&self.client)).await?;
        let mut names: Vec<&str> = changes.iter().map(|change| change.table.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let slot = &self.config.source.slot;
        let (checkpoint, tables) = state::look(&self.client, slot, &names).await?;
        Ok(Known { slot: slot.clone(), checkpoint, tables })
    }

    /// Adds the rows of a change to the block for rows of their kind.
    fn add(&self, blocks: &mut Vec<Rows>, known: &Known, index: usize, change: &Resent) -> Result<(), ApplyError> {
        let record = known.table(change)?;
        let spec = self.spec(record)?;
        fit(&spec, record, change)?;
        let at = match blocks.iter().position(|rows| rows.uuid == record.uuid) {
            Some(at) => at,
            None => {
                let range = self.range.get().copied().unwrap_or(DateTimeRange::of_server(0, 0));
                blocks.push(Rows::new(record, spec, range));
                blocks.len() - 1
            }
        };
        blocks[at].push(change)?;
        blocks[at].changes.push(index);
        Ok(())
    }

    fn spec(&self, record: &TableRecord) -> Result<TableSpec, ApplyError> {
        let options = self.config.table_options(&record.schema, &record.name);
        TableSpec::stored(record.oid, &record.schema, &record.name, &record.target, &record.shape, &options)
            .map_err(|why| ApplyError::Definite(format!("{}: {why}", record.full_name())))
    }

    /// Inserts rows, one change at a time if ClickHouse refuses them together.
    async fn land(&self, rows: &Rows) -> Vec<Outcome> {
        let whole = insert_once(&self.client, &rows.spec.target, &rows.block).await;
        match whole {
            Ok(()) => vec![Ok(Applied::Landed); rows.changes.len()],
            Err(error) if is_refusal(&error) && rows.changes.len() > 1 => {
                let mut outcomes = Vec::with_capacity(rows.changes.len());
                let mut start = 0;
                for &end in &rows.ends {
                    let one = insert_once(&self.client, &rows.spec.target, &rows.block.slice(start..end)).await;
                    outcomes.push(one.map(|()| Applied::Landed).map_err(|error| refused(&rows.spec, &error)));
                    start = end;
                }
                outcomes
            }
            Err(error) => vec![Err(refused(&rows.spec, &error)); rows.changes.len()],
        }
    }

    /// Takes away what has landed in a table that was truncated after it: by this attempt, or by an earlier one of which nobody
    /// heard how it ended.
    async fn look_again(&self, changes: &[Resent], outcomes: &mut [Option<Outcome>]) -> Result<(), Error> {
        let landed = Some(Ok(Applied::Landed));
        let truncated = Some(Ok(Applied::Superseded(TRUNCATED)));
        if !outcomes.iter().any(|outcome| *outcome == landed || *outcome == truncated) {
            return Ok(());
        }
        let known = self.look(changes).await?;
        let mut gone: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (change, outcome) in changes.iter().zip(outcomes) {
            let Ok(record) = known.table(change) else { continue };
            if (*outcome == landed || *outcome == truncated) && change.version() < record.floor {
                outcome.clone_from(&truncated);
                gone.entry(&record.target).or_default().push(format!("toUInt128('{}')", change.version().0));
            }
        }
        for (target, versions) in gone {
            let rows = format!("FROM {} WHERE {VERSION} IN ({})", quote::clickhouse(target), versions.join(", "));
            let there: u64 = self.client.query_raw(&format!("SELECT count() {rows}")).fetch_one().await?;
            if there > 0 {
                let delete = format!("DELETE {rows} SETTINGS lightweight_deletes_sync = 2");
                self.client.query_raw(&delete).execute().await?;
            }
        }
        Ok(())
    }
}

const TRUNCATED: &str = "its table was truncated after it";

fn away(error: &Error) -> ApplyError {
    presence().failed("apply a change that was sent again", error);
    ApplyError::Unavailable(client::describe(error))
}

fn refused(spec: &TableSpec, error: &Error) -> ApplyError {
    let why = client::describe(error);
    if is_refusal(error) {
        return ApplyError::Definite(format!("{}: ClickHouse refuses the row: {why}", spec.full_name()));
    }
    // A grant, a disk: whatever it is, it is not the row.
    presence().failed("apply a change that was sent again", error);
    ApplyError::Unavailable(why)
}

/// What is stored of the tables that changes are for.
struct Known {
    slot: String,
    checkpoint: Option<Checkpoint>,
    tables: Vec<TableRecord>,
}

impl Known {
    fn table(&self, change: &Resent) -> Result<&TableRecord, ApplyError> {
        let mut named = self.tables.iter().filter(|record| event_name(record) == change.table);
        match (named.next(), named.next()) {
            (Some(record), None) => Ok(record),
            (None, _) => {
                Err(ApplyError::Definite(format!("the slot {} replicates no table {}", self.slot, change.table)))
            }
            (Some(_), Some(_)) => {
                Err(ApplyError::Definite(format!("there is more than one table that is called {}", change.table)))
            }
        }
    }

    /// Why a change is not to land, if it is not.
    fn void(&self, change: &Resent) -> Option<Outcome> {
        let record = match self.table(change) {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        let definite = |why: String| {
            Some(Err(ApplyError::Definite(format!(
                "{why}: walhouse resync {} brings its row home",
                record.full_name()
            ))))
        };
        let Some(checkpoint) = &self.checkpoint else {
            return Some(Err(ApplyError::Transient("nothing is stored of the slot yet".to_owned())));
        };
        if change.epoch != checkpoint.epoch {
            return definite("it is of another history of the source".to_owned());
        }
        if change.commit == Lsn::ZERO {
            return definite("it was read by a copy, and has no position of its own".to_owned());
        }
        if change.commit > checkpoint.ceiling {
            return Some(Err(ApplyError::Transient("walhouse run has not come as far as this change".to_owned())));
        }
        if record.status.is_frozen() {
            return Some(Ok(Applied::Superseded("its table is stopped, and to be copied anew")));
        }
        if change.commit < record.fed_from {
            return Some(Ok(Applied::Superseded("its table was copied after it")));
        }
        (change.version() < record.floor).then_some(Ok(Applied::Superseded(TRUNCATED)))
    }
}

/// What events call a table.
fn event_name(record: &TableRecord) -> String {
    if record.schema == "public" { record.name.clone() } else { record.full_name() }
}

/// Whether a change has a value for every column of the target.
fn fit(spec: &TableSpec, record: &TableRecord, change: &Resent) -> Result<(), ApplyError> {
    let name = spec.full_name();
    let home = || format!("walhouse resync {name} brings its row home");
    if spec.changelog {
        let why = format!("{name} has no key, so its entries can not be sent again: {}", home());
        return Err(ApplyError::Definite(why));
    }
    let Some(after) = &change.after else { return Ok(()) };
    let known = |column: &String| spec.sources.iter().chain(&spec.excluded).any(|source| source.name == *column);
    // What was dropped since is gone from every row.
    let is_older = change.version() < record.shaped_from;
    if let Some(column) = after.keys().find(|column| !known(column)).filter(|_| !is_older) {
        return Err(ApplyError::Transient(format!("{name} has no column {column} in ClickHouse yet")));
    }
    match spec.columns.iter().find(|column| !after.contains_key(&column.name)) {
        Some(column) => {
            let why = format!("{name}: the event has no value for column {}: {}", column.name, home());
            Err(ApplyError::Definite(why))
        }
        None => Ok(()),
    }
}

/// Rows for one table.
struct Rows {
    uuid: String,
    spec: TableSpec,
    block: Block,
    /// The changes, and the row after the last of each.
    changes: Vec<usize>,
    ends: Vec<usize>,
}

impl Rows {
    fn new(record: &TableRecord, spec: TableSpec, range: DateTimeRange) -> Self {
        // What is in an event is masked already.
        let unmasked = |column: &ColumnSpec| ColumnSpec { mask: None, ..column.clone() };
        let block = Block::new(spec.columns.iter().map(unmasked).collect()).with_datetime_range(range);
        Self { uuid: record.uuid.clone(), spec, block, changes: Vec::new(), ends: Vec::new() }
    }

    /// Adds the row of a change, or its tombstone, or both if its key is another one.
    fn push(&mut self, change: &Resent) -> Result<(), ApplyError> {
        let (start, version) = (self.block.rows(), change.version().0);
        if let Some(after) = &change.after {
            self.cells(after, false)?;
            self.block.commit_row(version, false);
        }
        let moved = |before: &&Row| {
            let name = |index: &usize| &self.spec.columns[*index].name;
            change
                .after
                .as_ref()
                .is_none_or(|after| self.spec.key.iter().any(|index| before.get(name(index)) != after.get(name(index))))
        };
        if let Some(before) = change.before.as_ref().filter(moved) {
            if let Err(error) = self.cells(before, true) {
                (start..self.block.rows()).for_each(|_| self.block.pop_row());
                return Err(error);
            }
            self.block.commit_row(version, true);
            self.drop_same_key(start);
        }
        if self.block.rows() == start {
            return Err(ApplyError::Definite("it has neither a row nor a key".to_owned()));
        }
        self.ends.push(self.block.rows());
        Ok(())
    }

    /// Other texts may be the same key to ClickHouse: then the row is the later of the two.
    fn drop_same_key(&mut self, start: usize) {
        if self.block.rows() < start + 2 {
            return;
        }
        let (mut row, mut tombstone) = (Vec::new(), Vec::new());
        self.block.key(&self.spec.key, start, &mut row);
        self.block.key(&self.spec.key, start + 1, &mut tombstone);
        if row == tombstone {
            self.block.pop_row();
        }
    }

    fn cells(&mut self, values: &Row, key_only: bool) -> Result<(), ApplyError> {
        for (index, column) in self.spec.columns.iter().enumerate() {
            let into = self.block.column_mut(index);
            let is_key = self.spec.key.contains(&index);
            let pushed = match values.get(&column.name) {
                _ if key_only && !is_key => {
                    into.push_default();
                    Ok(())
                }
                Some(Some(text)) => into.push_text(text.as_bytes()),
                Some(None) if !is_key => into.push_null(),
                _ => {
                    self.block.rollback_row();
                    let why = format!("{}: the event lacks {} of the key", self.spec.full_name(), column.name);
                    return Err(ApplyError::Definite(why));
                }
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                let why = format!("{}: column {}: {error}", self.spec.full_name(), column.name);
                return Err(ApplyError::Definite(why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::state::TableStatus;

    fn record() -> TableRecord {
        TableRecord {
            oid: 7,
            schema: "public".to_owned(),
            name: "contact".to_owned(),
            target: "contact".to_owned(),
            uuid: "u".to_owned(),
            status: TableStatus::Streaming,
            fed_from: Lsn(100),
            shaped_from: Version::COPY,
            read_until: Lsn(100),
            floor: Version::new(Epoch(0), Lsn(200), Lsn(190)),
            membership: "m".to_owned(),
            shape: String::new(),
            heaps: BTreeMap::new(),
            altering: None,
            fresh: None,
        }
    }

    fn void(commit: u64, change: impl FnOnce(&mut Resent, &mut TableRecord)) -> Option<Outcome> {
        let mut resent = Resent {
            table: "contact".to_owned(),
            epoch: Epoch(0),
            commit: Lsn(commit),
            record: Lsn(commit - 1),
            before: None,
            after: Some(Row::new()),
        };
        let mut record = record();
        change(&mut resent, &mut record);
        let checkpoint = Checkpoint {
            epoch: Epoch(0),
            lsn: Lsn(300),
            queue_lsn: Lsn(300),
            ceiling: Lsn(1000),
            system_identifier: 1,
            timeline: 1,
            publication: "p".to_owned(),
            outbox: String::new(),
        };
        Known { slot: "s".to_owned(), checkpoint: Some(checkpoint), tables: vec![record] }.void(&resent)
    }

    #[test]
    fn what_something_later_has_made_void_does_not_land() {
        let superseded = |outcome: Option<Outcome>| matches!(outcome, Some(Ok(Applied::Superseded(_))));
        assert!(superseded(void(99, |_, _| {})), "copied after it");
        assert!(superseded(void(150, |_, _| {})), "truncated after it");
        assert!(superseded(void(500, |_, record| record.status = TableStatus::Stopped("x".to_owned()))));
        assert_eq!(void(201, |_, _| {}), None);
        // The first transaction after the copy begins where the copy's position is.
        assert_eq!(void(100, |_, record| record.floor = Version::COPY), None);
    }

    #[test]
    fn what_can_not_be_told_from_other_changes_does_not_land() {
        let definite = |outcome: Option<Outcome>| matches!(outcome, Some(Err(ApplyError::Definite(_))));
        assert!(definite(void(500, |change, _| change.epoch = Epoch(1))));
        assert!(definite(void(500, |change, _| (change.commit, change.record) = (Lsn::ZERO, Lsn::ZERO))));
        assert!(definite(void(500, |change, _| change.table = "other".to_owned())));
        assert!(matches!(void(1001, |_, _| {}), Some(Err(ApplyError::Transient(_)))), "beyond the ceiling");
    }
}
