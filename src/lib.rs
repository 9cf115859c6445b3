//! walhouse

pub mod event;
pub mod postgres;
