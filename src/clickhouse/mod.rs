//! The target: ClickHouse.

pub mod client;
