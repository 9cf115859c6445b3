//! What the command line can ask for, besides `run`.

pub mod check;
pub mod resync;
pub mod verify;
