//! What the command line can ask for, besides `run`.

pub mod check;
pub mod dlq;
pub mod epoch;
pub mod health;
pub mod pause;
pub mod provision;
pub mod replay;
pub mod request;
pub mod resync;
pub mod status;
pub mod verify;

use crate::{cli::exit, retry::Kind};

/// Takes a line about how a command goes on.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// What the process ends with when a server has not done what it was asked for.
fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Transient => exit::AWAY,
        Kind::Definite => exit::DENIED,
    }
}
