//! What the command line can ask for, besides `run`.

pub mod check;
pub mod dlq;
pub mod health;
pub mod provision;
pub mod resync;
pub mod verify;
