//! walhouse

pub mod clickhouse;
pub mod event;
pub mod postgres;
