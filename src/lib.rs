//! walhouse holds a PostgreSQL logical replication slot, turns the WAL into change events, and
//! lands them in ClickHouse, where each table is a `ReplacingMergeTree` of versioned rows, or, without a
//! key, of the versioned entries of a log.
//!
//! # The way of one change
//!
//! ```text
//! PostgreSQL ──▶ postgres::source ──▶ lane ──▶ clickhouse::sink ──▶ ReplacingMergeTree tables
//!                (streaming or catchup;           (batch → block → insert)
//!                assembler decodes pgoutput)
//!            ◀── status ── checkpoint ◀── durable position of every lane
//! ```
//!
//! Data goes one way. What comes back is one number: the position up to which everything is
//! durable. To follow a change, read [`pipeline`] and [`pipeline::flow`], then [`postgres::source`] and the two readers that
//! it chooses from, [`postgres::streaming`] and [`postgres::catchup`], [`postgres::assembler`],
//! [`lane`], [`clickhouse::sink`], [`clickhouse::batch`], [`clickhouse::insert`] and [`checkpoint`],
//! in this order. What was there before the stream began comes through [`copy`].
//!
//! # The way of one event
//!
//! ```text
//! PostgreSQL ──▶ postgres::source ──▶ lane ──▶ queue::publisher ──▶ SQS ──▶ queue::consumer ──▶ workers
//! ```
//!
//! An event that an application has written into the WAL goes the same way up to the lanes. From there read
//! [`queue`] and [`workers`].
//!
//! # What is always true
//!
//! 1. Durable before acknowledged: what PostgreSQL is told ≤ the stored checkpoint ≤ what every
//!    lane has made durable.
//! 2. Commits only: the checkpoint moves forward, and only to ends of commits and to positions before
//!    which nothing is left: idle marks, and the bounds of windows.
//! 3. Replay converges: a row's version is where its change stands in the WAL, so every write may be
//!    repeated in any grouping.
//! 4. Nothing is changed silently: a row that its table can not hold goes to the dead letters, or
//!    stops the table, by name.
//! 5. Memory is bounded by configuration, whatever the size of a transaction, a table or a backlog.
//! 6. The source's connection never starves: status goes out while ClickHouse is slow, down or hung.
//! 7. No row value in a log, an error, a metric or a panic; no secret in any output.
//!
//! # Who may import whom
//!
//! [`event`] imports nothing of ours, and neither do [`quote`], [`retry`], [`privacy`] and [`allocator`];
//! [`mask`], [`trace`], [`tls`] and [`store`], where the results of reports and large payloads go, know the
//! configuration alone. `postgres` and `clickhouse` stand on `event`, `lane`, `checkpoint`, `config` and the small ones, and do
//! not know each other; nor does
//! `queue`. `setup` and `copy` join the two, `workers` join ClickHouse and the queues, `pipeline` composes
//! everything, `commands` stand on top, and `http` on them; `probe` asks PostgreSQL, ClickHouse and SQS for what the metrics say of
//! them. A test reads the imports and holds the code to this.

pub mod allocator;
pub mod checkpoint;
pub mod cli;
pub mod clickhouse;
pub mod commands;
pub mod config;
pub mod copy;
pub mod event;
pub mod http;
pub mod lane;
pub mod mask;
pub mod pipeline;
pub mod postgres;
pub mod privacy;
pub mod probe;
pub mod queue;
pub mod quote;
pub mod retry;
pub mod setup;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod verify;
pub mod workers;
