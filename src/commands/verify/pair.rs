//! What is compared of a table, decided per table before anything is read.

use super::{Absence, masked};
use crate::{
    clickhouse::{
        block::ColumnSpec,
        changelog,
        state::{TableRecord, TableStatus},
        table::TableSpec,
    },
    config::Config,
    event::{SourceColumn, SourceTable},
    mask::Mask,
    quote,
    verify::{ColumnPair, Rendering, TablePair},
};

/// What to compare with what, or why not, by what is stored of the table and what it is now.
pub(super) fn of(
    config: &Config,
    table: &SourceTable,
    record: Option<&TableRecord>,
) -> Result<TablePair, (Absence, String)> {
    let options = config.table_options(&table.schema, &table.name);
    let now = TableSpec::new(table, &options, false);
    let record = record.ok_or_else(|| match &now {
        Err(reason) => (Absence::NotReplicated, reason.clone()),
        Ok(_) => (Absence::Copying, "its copy has not begun; if that lasts, walhouse's log says why".to_owned()),
    })?;
    match &record.status {
        TableStatus::Stopped(reason) => return Err((Absence::Stopped, reason.clone())),
        TableStatus::Paused(reason) => {
            return Err((
                Absence::Paused,
                format!("{reason}; walhouse resume --table {} ends that", record.full_name()),
            ));
        }
        TableStatus::Copying => return Err((Absence::Copying, "its copy is not complete".to_owned())),
        TableStatus::Resync(reason) => return Err((Absence::Copying, format!("it is being copied anew: {reason}"))),
        TableStatus::Streaming | TableStatus::Swapping | TableStatus::Gone => {}
    }
    let now = now.map_err(|reason| (Absence::NotReplicated, reason))?;
    let TableRecord { oid, schema, name, target, shape, .. } = record;
    // What is stored by a tool, and not by walhouse, may have no shape.
    let spec =
        if shape.is_empty() { Ok(now.clone()) } else { TableSpec::stored(*oid, schema, name, target, shape, &options) };
    let spec = spec.map_err(|reason| (Absence::Failed, reason))?;
    if let Some(difference) = spec.differs_by_configuration(&options).filter(|_| !shape.is_empty()) {
        let why = format!("{difference}; walhouse stops it when it starts with this configuration");
        return Err((Absence::Failed, why));
    }
    let names = |spec: &TableSpec| spec.sources.iter().map(|source| source.name.clone()).collect::<Vec<_>>();
    if names(&spec) != names(&now) {
        let why = "its shape has changed in PostgreSQL, and walhouse has not followed yet".to_owned();
        return Err((Absence::Copying, why));
    }
    let column = |(source, column): (&SourceColumn, &ColumnSpec)| {
        let usual = ColumnPair::of(source, &column.ty.name(column.nullable), column.null_mark());
        let kind = if matches!(column.mask, Some(Mask::Hash(_))) { Rendering::Text } else { usual.kind };
        let of_row = format!("walhouse_row.{}", quote::postgres(&source.name));
        let masked = column.mask.as_ref().map(|mask| masked::expression(mask, &of_row));
        ColumnPair { kind, masked, ..usual }
    };
    Ok(TablePair {
        schema: spec.schema.clone(),
        name: spec.name.clone(),
        target: record.target.clone(),
        key: spec.key.iter().filter_map(|&index| spec.sources.get(index)).map(|key| key.name.clone()).collect(),
        log: spec.changelog.then(|| changelog::current(&spec)),
        columns: spec.sources.iter().zip(spec.columns.iter()).map(column).collect(),
        filter: spec.filter.clone(),
    })
}
