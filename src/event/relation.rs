/// What a Relation message says of a table's shape at one point of the stream.
///
/// It has names and types only: no attribute number, no nullability, no primary key. Those come
/// from the catalog, which shows the present and not the stream's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`; with `publish_via_partition_root`, the partition root's.
    pub oid: u32,
    /// The schema's name, never empty (pgoutput abbreviates `pg_catalog`; the decoder does not).
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// What identifies an old row.
    pub identity: ReplicaIdentity,
    /// The published columns, in the order in which tuples carry them.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`: precision, length and the like; -1 where there is none.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity (every column is under FULL).
    pub key: bool,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing: updates and deletes can not be told apart.
    Nothing,
    /// The whole old row.
    Full,
    /// A chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// From the letter that the catalog and the protocol use.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'd' => Self::Default,
            b'n' => Self::Nothing,
            b'f' => Self::Full,
            b'i' => Self::Index,
            _ => return None,
        })
    }
}
