//! Whether ClickHouse has what PostgreSQL has: per table, by counts and checksums that both
//! servers compute, down to the keys that differ.
//!
//! Promises, to an operator who does not trust the rest of walhouse:
//! - **Independent.** Each server renders its own values by SQL; nothing passes through walhouse's
//!   parsers, and only the servers' renderings have to agree.
//! - **Fenced.** PostgreSQL is read in a snapshot, and ClickHouse only when everything that the
//!   snapshot can see has arrived there. So a row that is missing is lost and not late.
//! - **Beside writers.** What was changed after the snapshot differs too, for a moment. Keys that
//!   differ are looked at again, each time under a new snapshot and fence, and are reported when
//!   they differ while nothing changes them: neither their values nor the transaction that wrote
//!   them in PostgreSQL, nor their version in ClickHouse.
//! - **Bounded.** Sums are made in the servers, per bucket of keys. Hashes of rows are fetched for
//!   buckets that differ alone, in the order of keys from both sides, and merged as they come.
//! - **Whole, with one exception.** Of a column that is `JSON` in ClickHouse only NULLs are compared,
//!   because that type does not give back the text; the report names such columns.
//! - **To the column.** Of the keys that are named, a bounded number, each server also sends a hash per column, out
//!   of the same look that found the difference.
//! - **Discreet.** Keys and columns are named. No other value leaves the servers, unless the caller asks for the
//!   beginning of those that differ.
//!
//! Nothing is written, to the log neither: on an idle source it is the caller's [`Checkpoint`]
//! that has to reach the fence.

mod clickhouse;
mod compare;
mod engine;
mod error;
mod postgres;
mod report;
mod sql;
mod table;

pub use engine::{Checkpoint, Options, Verifier};
pub use error::{CheckpointError, Error};
pub use report::{Difference, KeyDifference, TableReport, ValueDifference, render};
pub use table::{ArrayPair, ColumnPair, Rendering, TablePair};
