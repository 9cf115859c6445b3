//! What becomes of each column, and which of its values have no place there.

use super::{Report, fine};
use crate::{
    clickhouse::{block::ColumnSpec, table::TableSpec},
    config::Unrepresentable,
};

/// A line for each column of a table that can be replicated.
pub(super) fn look_at_columns(spec: &TableSpec, report: &mut Report) {
    if spec.changelog {
        let what = "has no key: ClickHouse gets a log of its changes, which its _current view folds into rows";
        report.push("tables", spec.full_name(), fine(what));
    }
    for (source, column) in spec.sources.iter().zip(spec.columns.iter()) {
        let types: Vec<String> = column.native().map(|(_, ty)| ty).collect();
        let mut what = format!("{} → {}", source.type_name, types[0]);
        if let Some(mark) = column.null_mark() {
            what += &format!(", and {mark} {}", types[1]);
        }
        if column.mask.is_some() {
            what += ", masked";
        }
        let unheld = if column.mask.is_some() { String::new() } else { column.ty.unheld(source) };
        if !unheld.is_empty() {
            what += &format!("; does not fit: {}, which {}", unheld.replace('`', ""), outcome(column));
        }
        report.push("columns", format!("{}.{}", spec.full_name(), source.name), fine(what));
    }
}

fn outcome(column: &ColumnSpec) -> &'static str {
    match column.policy {
        Unrepresentable::DeadLetter => "goes to the dead letters",
        Unrepresentable::Fail => "stops the table",
        Unrepresentable::Null => "becomes NULL",
        Unrepresentable::Clamp => "becomes the nearer end of the range, if there is one",
    }
}
