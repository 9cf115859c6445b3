//! walhouse

pub mod cli;
pub mod clickhouse;
pub mod commands;
pub mod config;
pub mod event;
pub mod postgres;
pub mod retry;
