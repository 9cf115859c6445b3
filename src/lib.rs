//! walhouse

pub mod checkpoint;
pub mod cli;
pub mod clickhouse;
pub mod commands;
pub mod config;
pub mod copy;
pub mod event;
pub mod http;
pub mod lane;
pub mod pipeline;
pub mod postgres;
pub mod quote;
pub mod retry;
pub mod status;
pub mod telemetry;
pub mod verify;
