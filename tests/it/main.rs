//! The integration tests: walhouse's own binary between a real PostgreSQL and a real ClickHouse.
//!
//! `support` starts the servers, one pair for the whole run, and holds the oracle that compares the two sides. Each test
//! has a database of its own on both, so all of them run at once.

// A test that can not go on has failed.
#![allow(clippy::unwrap_used)]

mod commands;
mod copy;
mod crash;
mod gap;
mod hostile;
mod memory;
mod operations;
mod outage;
mod privileges;
mod releases;
mod rules;
mod scale;
mod servers;
mod startup;
mod stream;
mod support;
mod types;
mod verify;
mod version;
