//! walhouse

pub mod event;
