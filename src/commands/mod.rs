//! What the command line can ask for, besides `run`.

pub mod check;
pub mod dlq;
pub mod epoch;
pub mod health;
pub mod pause;
pub mod provision;
pub mod replay;
pub mod resync;
pub mod status;
pub mod verify;
