//! walhouse

pub mod event;
pub mod quote;
pub mod verify;
