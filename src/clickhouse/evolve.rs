//! What a change of a table's shape means for its target.
//!
//! The stream tells names and types, the catalog also tells attribute numbers, defaults and
//! rewrites, but it shows now and not then. So a change is followed in place only where the two
//! together leave no doubt about what older rows hold; where values may have been changed or
//! created without being streamed, or where the catalog is ahead of the stream in a way that could
//! mean one thing or another, the table is copied anew beside the live one. What changes the key
//! is for an operator to decide.
//!
//! In place are: a column that was added and whose value in older rows the catalog knows, one that
//! was renamed, one that was dropped (it stays, with what it had, unless the configuration says
//! otherwise), and one that takes NULL now.

use super::{
    block::NULL_MARK_SUFFIX,
    column::Column,
    table::{Plan, TableSpec},
    text,
    types::ColumnType,
};
use crate::{
    config::OnDropColumn,
    event::{Relation, SourceColumn, SourceTable, TableKind},
    quote,
};
use std::collections::BTreeMap;

/// What a change of shape calls for.
#[derive(Debug)]
pub enum Evolution {
    /// The target and what the stream says of the table stay as they are; `true` if what is stored of
    /// the source's columns is out of date.
    Same(Box<TableSpec>, bool),
    /// The target is altered, or only what the stream says differs.
    InPlace(Box<TableSpec>, Vec<Step>),
    /// The table is copied anew, for this reason.
    Anew(String),
    /// The table stops, for this reason.
    Stop(String),
}

/// One alteration of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A column is added; older rows have `default`, an expression of ClickHouse, or NULL.
    Add {
        /// Its place among the new layout's columns.
        column: usize,
        /// What older rows have.
        default: Option<String>,
    },
    /// A column is renamed.
    Rename {
        /// Its name so far.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A column takes NULL from now on.
    Loosen {
        /// Its name.
        name: String,
        /// Its type, which is in the old layout.
        ty: ColumnType,
    },
    /// A column is dropped, and what it had with it.
    Drop {
        /// The columns that hold it in ClickHouse.
        names: Vec<String>,
    },
}

/// What is compared.
pub struct Change<'a> {
    /// The target's layout.
    pub old: &'a TableSpec,
    /// The heaps of the source when they were last looked at, with their filenodes.
    pub heaps: &'a BTreeMap<u32, u64>,
    /// What the stream says; `None` if it has passed the point at which the catalog was read.
    pub relation: Option<&'a Relation>,
    /// The transaction whose change is the first in that shape.
    pub xid: Option<u32>,
    /// What the catalog says.
    pub now: &'a SourceTable,
}

impl Change<'_> {
    /// What it calls for.
    pub fn evolution(&self) -> Evolution {
        let named = |spec: TableSpec| TableSpec {
            target: self.old.target.clone(),
            schema: self.old.schema.clone(),
            name: self.old.name.clone(),
            ..spec
        };
        let (whole, new) = match (self.old.laid_onto(self.now), self.old.laid_onto(&self.restricted())) {
            (Ok(whole), Ok(new)) => (whole, named(new)),
            (Err(reason), _) | (_, Err(reason)) => return Evolution::Stop(reason),
        };
        if attnums(self.old, &self.old.key) != attnums(&new, &new.key) {
            return Evolution::Stop("its key is another now".to_owned());
        }
        if let Some(reason) = self.moved_rows(&whole.sources) {
            return Evolution::Anew(reason);
        }
        let steps = match self.steps(&new) {
            Ok(steps) => steps,
            Err(reason) => return Evolution::Anew(reason),
        };
        if let Some(Err(difference)) = self.relation.map(|relation| Plan::new(&new, relation)) {
            return Evolution::Anew(format!("its shape has changed more than once: {difference}"));
        }
        if steps.is_empty() && reads_alike(&self.old.sources, &new.sources) {
            let stale = new.sources != self.old.sources;
            return Evolution::Same(Box::new(new), stale);
        }
        Evolution::InPlace(Box::new(new), steps)
    }

    /// Why rows may have come, gone or changed without being streamed.
    fn moved_rows(&self, sources: &[SourceColumn]) -> Option<String> {
        if self.heaps.is_empty() {
            return None;
        }
        let rewritten =
            |heap: &crate::event::Heap| self.heaps.get(&heap.oid).is_some_and(|&was| was as u32 != heap.filenode);
        if self.now.kind == TableKind::Table {
            let written = |source: &SourceColumn| {
                let now = sources.iter().find(|now| now.attnum == source.attnum);
                now.is_none_or(|now| now.stamp != source.stamp)
            };
            let added = |now: &SourceColumn| !self.old.sources.iter().any(|source| source.attnum == now.attnum);
            let columns = self.old.sources.iter().any(written) || sources.iter().any(added);
            let rewritten = self.now.heaps.iter().any(rewritten);
            return (columns && rewritten).then(|| "its rows were rewritten by a change of its columns".to_owned());
        }
        let gone = self.heaps.keys().any(|oid| !self.now.heaps.iter().any(|heap| heap.oid == *oid));
        let attached = self.now.heaps.iter().any(|heap| match self.heaps.get(&heap.oid) {
            Some(&was) => was >> 32 != u64::from(heap.attachment),
            None => !heap.born_partition,
        });
        let reason = if gone {
            "one of its partitions was detached or dropped"
        } else if attached {
            "a table was attached as one of its partitions"
        } else if self.now.heaps.iter().any(rewritten) {
            "one of its partitions was truncated or rewritten"
        } else {
            return None;
        };
        Some(reason.to_owned())
    }

    /// The table of the catalog, without columns that were added after this point of the stream, and
    /// with those nullable that the target has as nullable already.
    fn restricted(&self) -> SourceTable {
        let mut now = self.now.clone();
        let known = |attnum: i16| self.old.sources.iter().find(|source| source.attnum == attnum);
        if let Some(relation) = self.relation {
            now.columns.retain(|column| {
                known(column.attnum).is_some() || relation.columns.iter().any(|other| other.name == column.name)
            });
        }
        for column in &mut now.columns {
            column.not_null &= known(column.attnum).is_none_or(|source| source.not_null);
        }
        now
    }

    fn steps(&self, new: &TableSpec) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        let place = |attnum: i16| new.sources.iter().position(|source| source.attnum == attnum);
        for (index, source) in self.old.sources.iter().enumerate() {
            let (name, ty) = (&self.old.columns[index].name, &self.old.columns[index].ty);
            let nullable = self.old.columns[index].nullable;
            let Some(now) = place(source.attnum) else {
                if new.sources.iter().any(|other| other.name == source.name) {
                    return Err(format!("column {name} was dropped and added again"));
                }
                if self.old.options.table.on_drop_column == OnDropColumn::Drop {
                    steps.push(Step::Drop { names: self.old.columns[index].native().map(|(name, _)| name).collect() });
                } else if !nullable && ty.takes_nullable() {
                    steps.push(Step::Loosen { name: name.clone(), ty: ty.clone() });
                }
                continue;
            };
            if new.columns[now].ty != *ty {
                return Err(format!("the type of column {name} is another"));
            }
            if !has_parts(&new.sources[now].parts, &source.parts) {
                return Err(format!("a label or the attributes of a type within column {name} were altered"));
            }
            if new.columns[now].nullable && !nullable {
                steps.push(Step::Loosen { name: name.clone(), ty: ty.clone() });
            }
            let to = &new.columns[now].name;
            if to != name {
                if self.old.key.contains(&index)
                    || self.old.columns[index].null_mark().is_some()
                    || self.old.columns.iter().any(|column| column.name == *to)
                {
                    return Err(format!("column {name} was renamed in a way that the target can not follow"));
                }
                steps.push(Step::Rename { from: name.clone(), to: to.clone() });
            }
        }
        for (column, source) in new.sources.iter().enumerate() {
            if !self.old.sources.iter().any(|old| old.attnum == source.attnum) {
                if self.is_later(source.stamp) {
                    return Err(format!("column {} was altered after this change", source.name));
                }
                steps.push(Step::Add { column, default: self.default(new, column)? });
            }
        }
        Ok(steps)
    }

    /// Whether this row of the catalog is from after the change at which the stream is: then it may be
    /// another column, or have another default, than the one that the stream means.
    fn is_later(&self, stamp: u32) -> bool {
        // Transaction ids wrap around.
        self.relation.is_some() && self.xid.is_some_and(|xid| (stamp.wrapping_sub(xid) as i32) > 0)
    }

    /// What older rows have in a column that was added.
    fn default(&self, new: &TableSpec, column: usize) -> Result<Option<String>, String> {
        let Some(missing) = &new.sources[column].missing else { return Ok(None) };
        let missing = match &new.columns[column].mask {
            Some(mask) => match mask.over(missing.as_bytes()) {
                Some(masked) => &String::from_utf8_lossy(&masked).into_owned(),
                None => return Ok(None),
            },
            None => missing,
        };
        // The leaves of a partition tree may differ in it.
        let literal = if self.now.kind == TableKind::Table { literal(&new.columns[column].ty, missing) } else { None };
        let unknown = || format!("column {} was added with a default", new.columns[column].name);
        literal.map(Some).ok_or_else(unknown)
    }
}

/// Whether what the stream says of the one says the same of the other.
fn reads_alike(old: &[SourceColumn], new: &[SourceColumn]) -> bool {
    let said = |source: &SourceColumn| (source.attnum, source.name.clone(), source.declared_oid);
    old.iter().map(said).eq(new.iter().map(said))
}

fn attnums(spec: &TableSpec, key: &[usize]) -> Vec<i16> {
    key.iter().map(|&index| spec.sources[index].attnum).collect()
}

/// Whether every part that there was is there still; new ones, as labels are, make no difference.
fn has_parts(now: &str, before: &str) -> bool {
    let digests =
        |parts: &'_ str| parts.as_bytes().chunks(8).map(<[u8]>::to_vec).collect::<std::collections::HashSet<_>>();
    now.starts_with(before) || digests(before).is_subset(&digests(now))
}

/// A value as an expression of ClickHouse, where there is one that is the value exactly.
fn literal(ty: &ColumnType, text: &str) -> Option<String> {
    // What a row could not hold is no default either.
    Column::new(ty.clone(), false).push_text(text.as_bytes()).ok()?;
    Some(match ty {
        ColumnType::Bool => if text == "t" { "true" } else { "false" }.to_owned(),
        ColumnType::String | ColumnType::LowCardinality => quote::clickhouse_string(text),
        ColumnType::Bytes => format!("unhex({})", quote::clickhouse_string(text.trim_start_matches("\\x"))),
        ColumnType::DateTime64 { precision: 6 } => {
            let micros = text::timestamp(text.as_bytes(), text::DateTimeRange::default(), 6).ok()?;
            format!("fromUnixTimestamp64Micro(toInt64({micros}), 'UTC')")
        }
        ColumnType::Int16
        | ColumnType::Int32
        | ColumnType::Int64
        | ColumnType::UInt32
        | ColumnType::UInt64
        | ColumnType::Float32
        | ColumnType::Float64
        | ColumnType::Decimal { .. }
        | ColumnType::Uuid
        | ColumnType::Date32
        | ColumnType::Ipv4
        | ColumnType::Ipv6 => {
            format!("CAST({}, {})", quote::clickhouse_string(text), quote::clickhouse_string(&ty.to_string()))
        }
        ColumnType::DateTime64 { .. }
        | ColumnType::Time64
        | ColumnType::Json
        | ColumnType::Array { .. }
        | ColumnType::Vector => return None,
    })
}

impl Step {
    /// The statement, which may be run any number of times.
    pub fn statement(&self, new: &TableSpec) -> String {
        let alter = format!("ALTER TABLE {}", quote::clickhouse(&new.target));
        let statement = match self {
            Self::Add { column, default } => {
                let spec = &new.columns[*column];
                let default = default.as_ref().map(|value| format!(" DEFAULT {value}")).unwrap_or_default();
                let add = |(name, ty): (String, String)| {
                    format!("ADD COLUMN IF NOT EXISTS {} {ty}{default}", quote::clickhouse(&name))
                };
                // The mark of an array that is NULL: older rows have no other value.
                let mark = spec.null_mark().map(|name| (name, "Bool DEFAULT true".to_owned()));
                let own = (spec.name.clone(), spec.ty.name(spec.nullable));
                let added: Vec<_> = std::iter::once(own).chain(mark).map(add).collect();
                format!("{alter} {}", added.join(", "))
            }
            Self::Rename { from, to } => {
                let (from, to) = (quote::clickhouse(from), quote::clickhouse(to));
                format!("{alter} RENAME COLUMN IF EXISTS {from} TO {to}")
            }
            Self::Loosen { name, ty } if !ty.takes_nullable() => {
                let mark = quote::clickhouse(&format!("{name}{NULL_MARK_SUFFIX}"));
                format!("{alter} ADD COLUMN IF NOT EXISTS {mark} Bool")
            }
            Self::Loosen { name, ty } => {
                format!("{alter} MODIFY COLUMN IF EXISTS {} {}", quote::clickhouse(name), ty.name(true))
            }
            Self::Drop { names } => {
                let drop = |name: &String| format!("DROP COLUMN IF EXISTS {}", quote::clickhouse(name));
                format!("{alter} {}", names.iter().map(drop).collect::<Vec<_>>().join(", "))
            }
        };
        format!("{statement} SETTINGS alter_sync = 2, mutations_sync = 2")
    }

    /// The names that it gives to columns of ClickHouse which had others or none.
    pub fn new_names(&self, new: &TableSpec) -> Vec<String> {
        match self {
            Self::Add { column, .. } => new.columns[*column].native().map(|(name, _)| name).collect(),
            Self::Rename { to, .. } => vec![to.clone()],
            Self::Loosen { name, ty } if !ty.takes_nullable() => vec![format!("{name}{NULL_MARK_SUFFIX}")],
            Self::Loosen { .. } | Self::Drop { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
