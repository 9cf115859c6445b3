//! How the rows of a block land in their table, and those that it does not take in the dead letters.
//!
//! ClickHouse takes a block or refuses it as a whole, and does not say which row it was. So a block
//! that it refuses for what is in its rows is halved until the rows are found: what is good lands in
//! parts, in any order, since versions commute. What it says of a row is kept by its code and name
//! only, because its message may quote the row.
//!
//! Whether the rows are refused or the table is not what it was, the error's code does not tell
//! surely (an unknown column is INCORRECT_DATA). So a block without rows is sent first: if that is
//! refused, no row would go in, and the table stops at once.
//!
//! If too many rows of one block are refused, it is not the rows that are wrong: the table stops.
//! Then letters of the block are not written, and the checkpoint does not pass it before the stop
//! is stored. What has landed of it does no harm: a table that stopped is copied anew.

use super::{
    block::Block,
    client,
    column::render,
    dead_letters::{self, Envelope, Letter, Letters, Operation, Reason, too_many},
    insert::InsertError,
    job::{Failure, Shared},
    table::{Table, TableSpec},
};
use crate::{
    config::Unrepresentable,
    event::{Lsn, Version},
    telemetry::{names, tables},
};
use bytes::Bytes;
use std::ops::Range;

/// TOO_LARGE_STRING_SIZE: a letter's values, as JSON, are beyond what ClickHouse reads.
const TOO_LARGE: u32 = 131;

/// Lands a block and the letters that came with it, and returns how many rows went in. `commit` is
/// the highest commit among all of them.
pub async fn land(
    shared: &Shared,
    table: &Table,
    block: &Block,
    mut letters: Letters,
    commit: Lsn,
) -> Result<usize, Failure> {
    account(table, block, &letters)?;
    let mut landed = block.rows();
    if landed > 0 {
        match shared.inserter.insert(&table.spec.target, block, commit).await {
            Ok(()) => {}
            Err(InsertError::Refused { source, .. }) if takes_refused(table) => {
                shared.inserter.insert(&table.spec.target, &block.slice(0..0), commit).await?;
                let before = letters.rows();
                bisect(shared, table, block, client::describe(&source), commit, &mut letters).await?;
                let refused = letters.rows() - before;
                landed -= refused;
                bound(table, 0, &letters, refused)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if letters.rows() > 0 {
        store(shared, table, letters, commit).await?;
    }
    Ok(landed)
}

/// Counts what is in a block and in the letters that came with it, and stops the table if those are too many.
pub fn account(table: &Table, block: &Block, letters: &Letters) -> Result<(), Failure> {
    bound(table, block.rows() + letters.rows(), letters, letters.rows())?;
    block.count_replaced(&table.spec.full_name());
    Ok(())
}

fn takes_refused(table: &Table) -> bool {
    dead_letters::policy(&table.spec, None) != Unrepresentable::Fail
}

/// Counts what came and what of it is lost, and stops the table if that is too much.
fn bound(table: &Table, received: usize, letters: &Letters, lost: usize) -> Result<(), Failure> {
    table.losses.count(received, lost).map_err(|(lost, all)| {
        Failure::Table(format!(
            "{lost} of the {all} rows that came since the session began can not be held in ClickHouse, the last one because \
             of {}. Correct the values at the source, choose another unrepresentable, or exclude the table; {} has the first \
             rows",
            letters.last_reason(),
            dead_letters::TABLE,
        ))
    })
}

/// Lands what ClickHouse takes of a block that it refused for the reason `why`, and turns the rest
/// into letters.
async fn bisect(
    shared: &Shared,
    table: &Table,
    block: &Block,
    why: String,
    commit: Lsn,
    letters: &mut Letters,
) -> Result<(), Failure> {
    let mut lost = 0;
    // Ranges that were refused.
    let mut refused: Vec<(Range<usize>, String)> = vec![(0..block.rows(), why)];
    while let Some((range, why)) = refused.pop() {
        if range.len() == 1 {
            lost += 1;
            if too_many(lost, block.rows() as u64) {
                return Err(Failure::Table(format!(
                    "ClickHouse refuses too many of its rows, {lost} of {} so far: {why}. Was its table altered there? \
                     Restore it",
                    block.rows()
                )));
            }
            letters.add(&table.spec, letter(&table.spec, block, range.start, why));
            continue;
        }
        let middle = range.start + range.len() / 2;
        let (first, second) = (range.start..middle, middle..range.end);
        match attempt(shared, table, block, first.clone(), commit).await? {
            Some(why) => refused.push((first, why)),
            // Then it is the second half, which need not be tried: it is halved at once. A single row
            // must be refused itself.
            None if second.len() > 1 => {
                refused.push((second, why));
                continue;
            }
            None => {}
        }
        if let Some(why) = attempt(shared, table, block, second.clone(), commit).await? {
            refused.push((second, why));
        }
    }
    Ok(())
}

/// Inserts a part of a block; the answer is why ClickHouse refuses one of its rows, if it does.
async fn attempt(
    shared: &Shared,
    table: &Table,
    block: &Block,
    range: Range<usize>,
    commit: Lsn,
) -> Result<Option<String>, Failure> {
    match shared.inserter.insert(&table.spec.target, &block.slice(range), commit).await {
        Ok(()) => Ok(None),
        Err(InsertError::Refused { source, .. }) => Ok(Some(client::describe(&source))),
        Err(error) => Err(error.into()),
    }
}

/// A row that ClickHouse refused. A block knows its rows' versions, and not what was done to them.
fn letter(spec: &TableSpec, block: &Block, row: usize, why: String) -> Letter {
    let (version, deleted) = block.version(row);
    let text = |column: usize| render::text(block.column(column), row);
    let mut envelope = Envelope::default();
    if let Some((ordinal, op)) = block.entry(row) {
        for (column, of) in spec.columns.iter().enumerate() {
            match op.removes() {
                true => envelope.old_value(&of.name, text(column).as_deref()),
                false => envelope.new_value(&of.name, text(column).as_deref()),
            }
        }
        let (operation, key) = (Operation::of(op), vec![ordinal.to_string().into_bytes()]);
        let (version, reason) = (Version(version), Reason::refused(why));
        return Letter { version, transaction: None, operation, key, reason, envelope };
    }
    for (column, of) in spec.columns.iter().enumerate() {
        match deleted {
            // The rest of a tombstone is blank.
            true if spec.key.contains(&column) => envelope.old_value(&of.name, text(column).as_deref()),
            true => {}
            false => envelope.new_value(&of.name, text(column).as_deref()),
        }
    }
    Letter {
        version: Version(version),
        transaction: None,
        operation: match Version(version) {
            _ if deleted => Operation::Delete,
            Version::COPY => Operation::Copy,
            _ => Operation::Upsert,
        },
        key: spec.key.iter().map(|&column| text(column).unwrap_or_default()).collect(),
        reason: Reason::refused(why),
        envelope,
    }
}

/// Writes letters, counts them and tells of them.
pub async fn store(shared: &Shared, table: &Table, letters: Letters, commit: Lsn) -> Result<(), Failure> {
    let name = table.spec.full_name();
    let (rows, reason) = (letters.rows(), letters.last_reason());
    let classes: Vec<_> = letters.by_class().filter(|(_, count)| *count > 0).collect();
    let sql = dead_letters::insert_statement(shared.state.slot(), &table.spec);
    table.losses.begin();
    let stored = shared.inserter.insert_letters(&sql, rows, Bytes::from(letters.into_data()), commit).await;
    stored.map_err(|error| match error {
        InsertError::Refused { source, .. } if client::code(&source) == Some(TOO_LARGE) => {
            let why = client::describe(&source);
            Failure::Table(format!("a row that can not be held is too large for a dead letter: {why}"))
        }
        // Letters have nowhere to go, of whatever table they are.
        InsertError::Refused { source, .. } => Failure::ClickHouse(source),
        error => error.into(),
    })?;
    shared.letters.notify_one();
    for (class, count) in classes {
        metrics::counter!(names::DEAD_LETTERS, "table" => tables::counted(&name), "reason" => class).increment(count);
    }
    if let Some(rows) = table.losses.to_tell(rows) {
        tracing::warn!(
            table = name,
            rows,
            last = reason,
            "rows went to the dead letters: SELECT key, column_name, reason FROM _dead_letters FINAL in ClickHouse names them"
        );
    }
    Ok(())
}
