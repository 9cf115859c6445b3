//! What the command line can ask for, besides `run`.

pub mod check;
pub mod verify;
