//! The source: PostgreSQL.

pub mod catalog;
pub mod sql;
