//! How a table of the source is laid out in ClickHouse, and what of that is remembered.
//!
//! A layout is decided once, when the target is created, from the catalog and the configuration. It
//! is stored then, and what is stored counts from there on: the target is as it was created,
//! whatever the configuration says by now. A configuration that says something else is a
//! difference, which stops the table.

use super::{IS_DELETED, RESERVED, VERSION, VIEW_SUFFIX};
use crate::{
    clickhouse::{
        block::ColumnSpec,
        changelog::{OP_COLUMN, ORDINAL_COLUMN},
        column::Column,
        types::ColumnType,
    },
    config::{Masking, SettingValue, TableOptions, Unrepresentable},
    event::{KeyKind, ReplicaIdentity, SourceColumn, SourceTable},
    mask::{Hash, Mask},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The layout of a target.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// `pg_class.oid` of the source.
    pub oid: u32,
    /// The source's schema.
    pub schema: String,
    /// The source's name.
    pub name: String,
    /// The table in ClickHouse.
    pub target: String,
    /// The source's columns that are replicated, in the order of the target's.
    pub sources: Vec<SourceColumn>,
    /// The source's columns that the configuration leaves out. The stream has them.
    pub excluded: Vec<SourceColumn>,
    /// The target's columns, without those that every target has.
    pub columns: Arc<[ColumnSpec]>,
    /// Indexes of the key's columns, in the order of the sorting key; none in a changelog.
    pub key: Vec<usize>,
    /// Whether the target is a log of changes, since the source has no key.
    pub changelog: bool,
    /// The publication's row filter, as PostgreSQL prints it.
    pub filter: Option<String>,
    /// What the configuration decided.
    pub choices: Choices,
    /// As it is configured.
    pub(crate) options: TableOptions,
    pub(crate) time64: bool,
    pub(crate) null_instead: Vec<String>,
}

/// What the configuration decides of a layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choices {
    /// Columns that are left out.
    pub exclude_columns: Vec<String>,
    /// Types that are not the usual ones.
    pub column_types: BTreeMap<String, String>,
    /// What takes the place of values.
    pub mask: BTreeMap<String, Masking>,
    /// Which salt the hashes are keyed with; empty for none, and where nothing is hashed.
    pub salt: String,
    /// The sorting key; empty for the order of the key's index.
    pub order_by: Vec<String>,
    /// An expression over columns of the key.
    pub partition_by: Option<String>,
    /// Settings of the MergeTree.
    pub settings: BTreeMap<String, SettingValue>,
}

impl Choices {
    fn of(options: &TableOptions) -> Self {
        let table = &options.table;
        let hashes = table.mask.values().any(|mask| *mask == Masking::Hash);
        Self {
            exclude_columns: table.exclude_columns.clone(),
            column_types: table.column_types.clone(),
            mask: table.mask.clone(),
            salt: if hashes { Hash::new(options.salt.as_ref()).fingerprint() } else { String::new() },
            order_by: table.order_by.clone(),
            partition_by: table.partition_by.clone(),
            settings: table.settings.clone(),
        }
    }

    /// The first key that says something else in `other`, but for those that no row depends on.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        let same = [
            ("exclude_columns", sorted(&self.exclude_columns) == sorted(&other.exclude_columns)),
            ("column_types", self.column_types == other.column_types),
            ("mask", self.mask == other.mask),
            ("masking.salt", self.salt == other.salt),
            ("order_by", self.order_by == other.order_by),
            ("partition_by", self.partition_by == other.partition_by),
        ];
        same.into_iter().find(|(_, same)| !same).map(|(key, _)| key)
    }

    /// The first name in it that none of `columns` has, with its key.
    fn unknown<'a>(&'a self, columns: &[SourceColumn]) -> Option<(&'static str, &'a str)> {
        let named = self.exclude_columns.iter().map(|name| ("exclude_columns", name));
        let named = named.chain(self.column_types.keys().map(|name| ("column_types", name)));
        let mut named = named.chain(self.mask.keys().map(|name| ("mask", name)));
        let known = |name: &str| columns.iter().any(|column| column.name == name);
        named.find(|(_, name)| !known(name)).map(|(key, name)| (key, name.as_str()))
    }
}

/// A layout as it is stored.
#[derive(Serialize, Deserialize)]
struct Shape {
    sources: Vec<SourceColumn>,
    #[serde(default)]
    excluded: Vec<SourceColumn>,
    #[serde(default)]
    changelog: bool,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    choices: Choices,
    /// Whether the server had the type Time64 when the target was created.
    #[serde(default)]
    time64: bool,
    /// Columns that take NULL only as the replacement of what they can not hold.
    #[serde(default)]
    null_instead: Vec<String>,
}

impl TableSpec {
    /// The layout for what is published of `table`, under `options`. `time64` says whether the server
    /// has that type.
    ///
    /// # Errors
    /// Why it can not be replicated, and what to do about it.
    pub fn new(table: &SourceTable, options: &TableOptions, time64: bool) -> Result<Self, String> {
        let changelog = table.key.clone()? == KeyKind::FullWithoutKey;
        let target = target_name(&table.schema, &table.name, options);
        if RESERVED.contains(&target.as_str()) {
            return Err(format!(
                "its name in ClickHouse would be {target}, which is walhouse's own: give it another with target, or \
                 exclude it in source.exclude"
            ));
        }
        let choices = Choices::of(options);
        let section = section(&table.schema, &table.name);
        let unknown = choices.unknown(&table.columns).or_else(|| {
            let name =
                options.table.columns.keys().find(|name| table.columns.iter().all(|column| column.name != **name));
            name.map(|name| ("columns", name.as_str()))
        });
        if let Some((key, name)) = unknown {
            return Err(format!("{section} names in {key} a column {name}, which it does not have: correct the name"));
        }
        let (excluded, sources): (Vec<_>, Vec<_>) =
            table.columns.iter().cloned().partition(|column| choices.exclude_columns.contains(&column.name));
        if let Some(column) = excluded.iter().find(|column| column.key_position.is_some()) {
            return Err(format!("{section} names in exclude_columns {}, which is a column of its key", column.name));
        }
        let replaces = |column: &&SourceColumn| {
            column.not_null
                && column.key_position.is_none()
                && options.unrepresentable(&column.name) == Unrepresentable::Null
        };
        let null_instead = sources.iter().filter(replaces).map(|column| column.name.clone()).collect();
        let shape = Shape { sources, excluded, changelog, filter: table.filter.clone(), choices, time64, null_instead };
        Self::of(table.oid, &table.schema, &table.name, target, shape, options)
    }

    /// The layout that was stored as [`shape`](Self::shape), whatever the catalog and the
    /// configuration show by now. Of `options`, the salt counts: it is not stored.
    ///
    /// # Errors
    /// If what was stored is not a layout.
    pub fn stored(
        oid: u32,
        schema: &str,
        name: &str,
        target: &str,
        shape: &str,
        options: &TableOptions,
    ) -> Result<Self, String> {
        let unreadable = |error: serde_json::Error| format!("its stored shape is not readable: {error}");
        // A plain list of columns is what was stored before tables had options.
        let shape = if shape.starts_with('[') {
            let sources = serde_json::from_str(shape).map_err(unreadable)?;
            Shape {
                sources,
                excluded: Vec::new(),
                changelog: false,
                filter: None,
                choices: Choices::default(),
                time64: false,
                null_instead: Vec::new(),
            }
        } else {
            serde_json::from_str(shape).map_err(unreadable)?
        };
        Self::of(oid, schema, name, target.to_owned(), shape, options)
    }

    fn of(
        oid: u32,
        schema: &str,
        name: &str,
        target: String,
        shape: Shape,
        options: &TableOptions,
    ) -> Result<Self, String> {
        let Shape { sources, excluded, changelog, filter, choices, time64, null_instead } = shape;
        let own: &[&str] = if changelog { &[VERSION, ORDINAL_COLUMN, OP_COLUMN] } else { &[VERSION, IS_DELETED] };
        if let Some(column) = sources.iter().find(|column| own.contains(&column.name.as_str())) {
            return Err(format!(
                "its column {} has a name that every table in ClickHouse needs: rename it, or exclude it with \
                 exclude_columns",
                column.name
            ));
        }
        let configured = |reason| format!("{}: {reason}", section(schema, name));
        let columns = sources.iter().map(|source| {
            let ty = column_type(source, &choices, time64)?;
            // What never refuses a value needs no place for a replacement.
            let replaced = null_instead.contains(&source.name) && !ty.unheld(source).is_empty();
            column(source, ty, !source.not_null || replaced, &choices, options)
        });
        let columns: Arc<[ColumnSpec]> = columns.collect::<Result<_, _>>().map_err(configured)?;
        let marks: Vec<String> = columns.iter().filter_map(ColumnSpec::null_mark).collect();
        if let Some(name) = marks.iter().find(|mark| sources.iter().any(|column| column.name == **mark)) {
            return Err(format!(
                "its column {name} has the name of the column that tells in ClickHouse whether an array is NULL: rename \
                 it, exclude it with exclude_columns, or make the array a String with column_types"
            ));
        }
        let key = match (changelog, choices.order_by.is_empty()) {
            (true, true) => Vec::new(),
            (true, false) => {
                let why = "order_by is for tables with a key; a log of changes is in the order of the changes";
                return Err(configured(why.to_owned()));
            }
            (false, true) => key(&sources)?,
            (false, false) => sorted(key(&sources)?, &sources, &choices.order_by).map_err(configured)?,
        };
        let (schema, name) = (schema.to_owned(), name.to_owned());
        let options = options.clone();
        Ok(Self {
            oid,
            schema,
            name,
            target,
            sources,
            excluded,
            columns,
            key,
            changelog,
            filter,
            choices,
            options,
            time64,
            null_instead,
        })
    }

    /// The layout of `table` under the same options, for the same server.
    pub fn laid_onto(&self, table: &SourceTable) -> Result<Self, String> {
        let new = if self.changelog && table.replica_identity == ReplicaIdentity::Full {
            // A log goes on as one when the table gets a key.
            Self::new(&without_key(table), &self.options, self.time64)?
        } else {
            Self::new(table, &self.options, self.time64)?
        };
        // What takes NULL once takes it, whatever is wished by now.
        let kept = |column: &&SourceColumn| {
            let old = self.sources.iter().find(|source| source.attnum == column.attnum);
            old.is_some_and(|old| self.null_instead.contains(&old.name)) && !new.null_instead.contains(&column.name)
        };
        let kept: Vec<String> = new.sources.iter().filter(kept).map(|column| column.name.clone()).collect();
        if kept.is_empty() {
            return Ok(new);
        }
        let sources = new.sources.clone();
        Self { null_instead: [new.null_instead.clone(), kept].concat(), ..new }.with_sources(sources)
    }

    /// The same layout for columns of which something else is known.
    pub fn with_sources(&self, sources: Vec<SourceColumn>) -> Result<Self, String> {
        let Self { excluded, changelog, filter, choices, time64, null_instead, .. } = self.clone();
        let shape = Shape { sources, excluded, changelog, filter, choices, time64, null_instead };
        Self::of(self.oid, &self.schema, &self.name, self.target.clone(), shape, &self.options)
    }

    /// The view of current rows beside the target.
    pub fn view(&self) -> String {
        format!("{}{VIEW_SUFFIX}", self.target)
    }

    /// Whether an update can leave a value out of the stream. Under REPLICA IDENTITY FULL, as a
    /// changelog needs it, the old row has it.
    pub fn toastable(&self) -> bool {
        !self.changelog && self.sources.iter().any(|column| column.storage_toastable)
    }

    /// The layout, to be stored.
    pub fn shape(&self) -> String {
        let shape = Shape {
            sources: self.sources.clone(),
            excluded: self.excluded.clone(),
            changelog: self.changelog,
            filter: self.filter.clone(),
            choices: self.choices.clone(),
            time64: self.time64,
            null_instead: self.null_instead.clone(),
        };
        serde_json::to_string(&shape).unwrap_or_default()
    }

    /// How the configuration's present wishes differ from those that the target was made by. Another
    /// name is no difference: a target can be renamed.
    pub fn differs_by_configuration(&self, options: &TableOptions) -> Option<String> {
        let key = self.choices.differs(&Choices::of(options))?;
        Some(format!("the configuration has changed since its target was made: {key} is another"))
    }

    /// Whether the target was made with other settings than those that are configured now.
    pub fn has_other_settings(&self, options: &TableOptions) -> bool {
        self.choices.settings != options.table.settings
    }

    /// Columns whose policy is NULL for what they can not hold, and which were made without it.
    pub fn without_place_for_null(&self) -> impl Iterator<Item = &str> {
        let columns = self.sources.iter().zip(self.columns.iter());
        let lacking = columns.filter(|(source, column)| {
            column.policy == Unrepresentable::Null && !column.nullable && !column.ty.unheld(source).is_empty()
        });
        lacking.map(|(source, _)| source.name.as_str())
    }

    /// `schema.name`, for people and as a metric's label.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// The type of a column of the target.
fn column_type(source: &SourceColumn, choices: &Choices, time64: bool) -> Result<ColumnType, String> {
    let name = &source.name;
    match (choices.mask.get(name), choices.column_types.get(name)) {
        (Some(Masking::Hash), _) => Ok(ColumnType::String),
        (_, Some(wanted)) => {
            ColumnType::for_column(source, wanted).map_err(|reason| format!("column_types of {name}: {reason}"))
        }
        _ => Ok(ColumnType::of_column(source, time64)),
    }
}

/// A column of the target.
fn column(
    source: &SourceColumn,
    ty: ColumnType,
    takes_null: bool,
    choices: &Choices,
    options: &TableOptions,
) -> Result<ColumnSpec, String> {
    let name = &source.name;
    let mask = choices.mask.get(name).map(|masking| Mask::new(masking, options.salt.as_ref()));
    let is_key = source.key_position.is_some();
    if is_key && matches!(mask, Some(Mask::Null | Mask::Fixed(_))) {
        return Err(format!("the mask of {name} would make one row of all: a column of the key can only be hashed"));
    }
    let nullable = !is_key && (takes_null || mask == Some(Mask::Null));
    let policy = policy(source, options)?;
    let spec = ColumnSpec { name: name.clone(), ty, nullable, mask, policy };
    // A fixed text that is no value of the column would stop the table at its first row.
    if let Some(Mask::Fixed(fixed)) = &spec.mask {
        let refused = |error| format!("the mask of {name} is no value of that column: {error}");
        Column::new(spec.ty.clone(), nullable).push_text(fixed.as_bytes()).map_err(refused)?;
    }
    Ok(spec)
}

/// What becomes of a value that the column can not hold. Two rows would become one if the values of
/// their keys were replaced, so a policy for many columns leaves those of the key alone.
fn policy(source: &SourceColumn, options: &TableOptions) -> Result<Unrepresentable, String> {
    let policy = options.unrepresentable(&source.name);
    let replaces = matches!(policy, Unrepresentable::Null | Unrepresentable::Clamp);
    if source.key_position.is_none() || !replaces {
        return Ok(policy);
    }
    let own = options.table.columns.get(&source.name).and_then(|column| column.unrepresentable);
    match own {
        None => Ok(Unrepresentable::default()),
        Some(_) => Err(format!(
            "columns.{}.unrepresentable = \"{policy}\" would change a column of the key, and make one row of several; \
             choose \"dead_letter\" or \"fail\"",
            source.name
        )),
    }
}

/// The table as if it had no key.
fn without_key(table: &SourceTable) -> SourceTable {
    let mut table = table.clone();
    table.columns.iter_mut().for_each(|column| column.key_position = None);
    table.key = table.key.map(|_| KeyKind::FullWithoutKey);
    table
}

/// Indexes of the key's columns, in the order of its index.
fn key(sources: &[SourceColumn]) -> Result<Vec<usize>, String> {
    let mut key: Vec<_> = (0..sources.len()).filter(|&index| sources[index].key_position.is_some()).collect();
    key.sort_by_key(|&index| sources[index].key_position);
    if key.is_empty() { Err("its key has no column that is replicated".into()) } else { Ok(key) }
}

/// The key's columns in another order.
fn sorted(key: Vec<usize>, sources: &[SourceColumn], order_by: &[String]) -> Result<Vec<usize>, String> {
    let place = |name: &String| key.iter().copied().find(|&index| sources[index].name == *name);
    let sorted: Option<Vec<usize>> = order_by.iter().map(place).collect();
    sorted.filter(|sorted| sorted.len() == key.len()).ok_or_else(|| {
        let names: Vec<&str> = key.iter().map(|&index| sources[index].name.as_str()).collect();
        format!("order_by must have the columns of the key, each once: {}", names.join(", "))
    })
}

/// Where the configuration speaks of a table.
fn section(schema: &str, name: &str) -> String {
    format!("[tables.\"{schema}.{name}\"]")
}

/// The name of the target: as configured, or else tables of `public` keep theirs and others get
/// their schema's in front.
fn target_name(schema: &str, name: &str, options: &TableOptions) -> String {
    let usual = || if schema == "public" { name.to_owned() } else { format!("{schema}_{name}") };
    options.table.target.clone().unwrap_or_else(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &str = r#"[{"attnum":1,"name":"id","declared_oid":23,"declared_modifier":-1,"type_oid":23,
        "type_modifier":-1,"is_enum":false,"not_null":true,"generated":false,"key_position":0,"storage_toastable":false}]"#;

    fn stored(shape: &str, options: &TableOptions) -> TableSpec {
        TableSpec::stored(7, "public", "t", "t", shape, options).unwrap()
    }

    #[test]
    fn what_was_stored_before_there_were_options_is_read_and_has_none() {
        let options = TableOptions::default();
        let spec = stored(COLUMNS, &options);
        assert_eq!((spec.key.as_slice(), &spec.choices), (&[0][..], &Choices::default()));
        assert_eq!(spec.differs_by_configuration(&options), None);
        assert_eq!(stored(&spec.shape(), &options).shape(), spec.shape());
    }

    #[test]
    fn another_salt_is_a_difference_where_something_is_hashed() {
        let salted = |salt: &str, mask: &[(&str, Masking)]| {
            let mut options = TableOptions { salt: Some(salt.into()), ..TableOptions::default() };
            options.table.mask = mask.iter().map(|(name, masking)| ((*name).to_owned(), masking.clone())).collect();
            options
        };
        let hashed = [("id", Masking::Hash)];
        let shape = format!(
            r#"{{"sources":{COLUMNS},"choices":{}}}"#,
            serde_json::to_string(&Choices::of(&salted("canary", &hashed))).unwrap()
        );
        assert!(!shape.contains("canary"));
        let spec = stored(&shape, &salted("canary", &hashed));
        assert_eq!(spec.differs_by_configuration(&salted("canary", &hashed)), None);
        assert!(spec.differs_by_configuration(&salted("other", &hashed)).unwrap().contains("masking.salt"));
        assert_eq!(stored(COLUMNS, &salted("a", &[])).differs_by_configuration(&salted("b", &[])), None);
        assert!(!format!("{spec:?}").contains("canary"));
    }
}
