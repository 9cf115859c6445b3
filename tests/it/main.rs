//! The integration tests: walhouse's own binary between a real PostgreSQL and a real ClickHouse.
//!
//! `support` starts the servers, one pair for the whole run, and holds the oracle that compares the two sides. Each test
//! has a database of its own on both, so all of them run at once.

// A test that can not go on has failed.
#![allow(clippy::unwrap_used)]

mod alerts;
mod api;
mod catchup;
mod changelog;
mod check;
mod claim;
mod commands;
mod consumer;
mod container;
mod contracts;
mod copy;
mod correlation;
mod crash;
mod ddl_trigger;
mod dead_letters;
mod dlq;
mod edges;
mod epoch;
mod full_disk;
mod gap;
mod hostile;
mod keys;
mod measures;
mod memory;
mod operations;
mod options;
mod outage;
mod pace;
mod page;
mod pause;
mod privileges;
mod provision;
mod publications;
mod published;
mod queue;
mod quick_start;
mod recovery;
mod releases;
mod replay;
mod reports;
mod roundtrip;
mod rules;
mod runbooks;
mod scale;
mod scrape;
mod security;
mod servers;
mod shapes;
mod startup;
mod state;
mod status;
mod stream;
mod support;
mod switchover;
mod tls;
mod traces;
mod types;
mod verify;
mod version;
mod workers;
