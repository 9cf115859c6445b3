use super::ReplicaIdentity;

/// A table of the source, or the root of a partition tree, as the catalog shows it now.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The schema's name.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// What it is.
    pub kind: TableKind,
    /// `pg_class.relreplident`.
    pub replica_identity: ReplicaIdentity,
    /// In order of their attribute numbers, dropped ones left out.
    pub columns: Vec<SourceColumn>,
    /// What identifies a row, or why nothing does and what to do about it.
    pub key: Result<KeyKind, String>,
    /// Which rows are published, as PostgreSQL prints the condition; `None` for all.
    pub filter: Option<String>,
    /// What holds its rows: the table itself, or the leaves of the partition tree.
    pub heaps: Vec<Heap>,
}

/// A heap of a [`SourceTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heap {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `pg_relation_filenode`: a rewrite or a TRUNCATE gives it another.
    pub filenode: u32,
    /// What differs once it, or a partition above it, was detached and attached again; 0 outside of a
    /// partition tree.
    pub attachment: u32,
    /// Whether it was created as a partition, and so came without rows; `false` where that can not
    /// be told.
    pub born_partition: bool,
}

/// What holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// The table itself.
    Table,
    /// Its partitions.
    PartitionRoot,
}

/// Where the key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// The primary key, under REPLICA IDENTITY DEFAULT.
    PrimaryKey,
    /// The index of REPLICA IDENTITY USING INDEX.
    Index,
    /// The primary key, under REPLICA IDENTITY FULL.
    FullWithPrimaryKey,
    /// There is none. Under REPLICA IDENTITY FULL old rows come whole, so the table can be had as a
    /// log of its changes.
    FullWithoutKey,
}

/// A column of a [`SourceTable`].
///
/// Its form as JSON is stored with each target, and is what the DDL trigger of `migrations/postgres` writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct SourceColumn {
    /// `pg_attribute.attnum`: what stays when a column is renamed.
    pub attnum: i16,
    /// The column's name.
    pub name: String,
    /// The declared type's oid, `pg_attribute.atttypid`: what a Relation message carries.
    pub declared_oid: u32,
    /// The declared type's modifier, `pg_attribute.atttypmod`.
    pub declared_modifier: i32,
    /// The type's oid; under a domain, its base type's.
    pub type_oid: u32,
    /// The type's modifier, the base type's under a domain; -1 where there is none.
    pub type_modifier: i32,
    /// The declared type as PostgreSQL writes it, for people.
    pub type_name: String,
    /// Whether the type is an enum.
    pub is_enum: bool,
    /// Whether the type is pgvector's `vector`.
    pub is_vector: bool,
    /// What an array holds; `None` for any other type, and for the one array whose text separates
    /// its elements by something else than a comma, that of `box`.
    pub element: Option<ElementType>,
    /// With how many dimensions the array was declared. Its values may have others.
    pub dimensions: u16,
    /// Whether the column's own constraint excludes NULL. A domain's does not count: an outer join or
    /// an empty subquery can store a NULL in spite of it.
    pub not_null: bool,
    /// Whether the value is computed from other columns, and stored.
    pub generated: bool,
    /// The column's place in the key, from 0.
    pub key_position: Option<u16>,
    /// Whether a value may be stored out of line, and so be left out of an UPDATE.
    pub storage_toastable: bool,
    /// What rows have that are older than the column, as text: `pg_attribute.attmissingval`.
    pub missing: Option<String>,
    /// The transaction that wrote the column's row of the catalog last. A rewrite that computes
    /// values writes it; one that only moves rows does not.
    pub stamp: u32,
    /// What the text of a value is made of besides the value: short digests, eight letters each, of
    /// the enum labels and of the lists of attributes that are anywhere within the type.
    pub parts: String,
}

/// What an array holds, a domain resolved to its base type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct ElementType {
    /// The type's oid.
    pub type_oid: u32,
    /// The type's modifier; -1 where there is none.
    pub type_modifier: i32,
    /// Whether the type is an enum.
    pub is_enum: bool,
}

impl Heap {
    /// Its attachment and its filenode as one number, to be stored.
    pub fn state(&self) -> u64 {
        u64::from(self.attachment) << 32 | u64::from(self.filenode)
    }
}

impl SourceTable {
    /// `schema.name`, for people.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}
