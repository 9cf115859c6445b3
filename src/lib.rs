//! walhouse

pub mod clickhouse;
pub mod event;
