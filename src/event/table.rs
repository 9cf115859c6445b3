/// A table of the source as its catalog shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The schema's name.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// A plain table or the root of a partition tree.
    pub kind: TableKind,
    /// What identifies an old row.
    pub identity: super::ReplicaIdentity,
    /// Its columns in the order of attribute numbers, dropped ones left out.
    pub columns: Vec<SourceColumn>,
    /// Whether rows can be told apart by a key, or why they can not and what to do about it.
    pub key: Result<(), String>,
}

/// What kind of relation a [`SourceTable`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// It has rows of its own.
    Table,
    /// Its rows are in its partitions.
    PartitionRoot,
}

/// A column of a [`SourceTable`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceColumn {
    /// `pg_attribute.attnum`.
    pub attnum: i16,
    /// The column's name.
    pub name: String,
    /// The declared type, `pg_attribute.atttypid`: what a Relation message carries.
    pub declared_oid: u32,
    /// The declared type's modifier, `pg_attribute.atttypmod`.
    pub declared_modifier: i32,
    /// The type behind it: a domain is resolved to its base type.
    pub type_oid: u32,
    /// The modifier that goes with `type_oid`; -1 where there is none.
    pub type_modifier: i32,
    /// Whether `type_oid` is an enum.
    pub is_enum: bool,
    /// Whether it can not be NULL.
    pub not_null: bool,
    /// Whether it is generated.
    pub generated: bool,
    /// Its place in the key, counted from 0 in index order.
    pub key_position: Option<u16>,
    /// Whether a value can be moved out of line.
    pub toastable: bool,
}

impl SourceTable {
    /// `schema.name`, for people.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
