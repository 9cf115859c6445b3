//! The composition root.

use crate::{config::Config, status::Status};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why the daemon ended without being asked to.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Halt {
    /// What happened and what an operator does about it.
    pub message: String,
}

/// Runs until `stop` is cancelled, then drains.
///
/// # Errors
/// When only an operator can help.
pub async fn run(config: Arc<Config>, status: Arc<Status>, stop: CancellationToken) -> Result<(), Halt> {
    let _ = (config, status, stop);
    Ok(())
}
