//! The vocabulary: what a change of the source *is*, before anybody reads or writes one.
//!
//! This module imports nothing of ours. `postgres` speaks it outwards, lanes understand it, and
//! what crosses between them is always one of these types, so that a second reader of the same
//! slot, or a second destination, has nothing else to learn.
//!
//! Row values are never copied on the way: a [`Group`] owns the bytes of one gulp from the
//! server, and its events point into them with [`Span`]s.

mod change;
pub mod envelope;
mod lsn;
mod outline;
mod relation;
pub mod schema;
mod table;
mod version;

pub use change::{Change, Event, Group, Op, Span, Transaction, Tuple, TupleError, Value, Values};
pub use lsn::{Lsn, ParseLsnError};
pub use relation::{Relation, RelationColumn, ReplicaIdentity};
pub use table::{ElementType, Heap, KeyKind, SourceColumn, SourceTable, TableKind};
pub use version::{Epoch, Version};
