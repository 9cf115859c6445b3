//! The integration tests: walhouse's own binary between a real PostgreSQL and a real ClickHouse.
//!
//! `support` starts the servers, one pair for the whole run, and holds the oracle that compares the two sides. Each test
//! has a database of its own on both, so all of them run at once.

mod commands;
mod copy;
mod memory;
mod operations;
mod privileges;
mod servers;
mod startup;
mod stream;
mod support;
mod types;
mod verify;
