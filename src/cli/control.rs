//! The words of the commands that show and steer a walhouse that runs.

use std::fmt;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Glob, Timespan},
    event::Lsn,
};

/// `walhouse status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Print JSON; with --watch, one line each time.
    #[arg(long)]
    pub json: bool,
    /// Look again every two seconds, until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
}

/// A worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Worker {
    /// Of audit-log-queue.
    Audit,
    /// Of async-operations-queue.
    Operation,
    /// Of data-sync-queue.
    DataSync,
}

/// Its word on the command line.
impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Whether it is waited until somebody has taken it up.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Do not wait; the log of walhouse run tells the rest.
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait until a process takes it up.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: Timespan,
}

/// `walhouse pause`
#[derive(Clone, Debug, Args)]
pub struct PauseArgs {
    /// Only tables that match this pattern over schema.table; may be given several times.
    #[arg(long = "table", value_name = "GLOB")]
    pub tables: Vec<Glob>,
    /// Only this worker; may be given several times.
    #[arg(long = "worker", value_name = "WORKER")]
    pub workers: Vec<Worker>,
    /// Why, for the log and for whoever asks later.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Change nothing, and say what would stand still.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `walhouse resume`
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// Only paused tables that match this pattern over schema.table; may be given several times.
    #[arg(long = "table", value_name = "GLOB")]
    pub tables: Vec<Glob>,
    /// Only this worker; may be given several times.
    #[arg(long = "worker", value_name = "WORKER")]
    pub workers: Vec<Worker>,
    /// Change nothing, and say what would go on.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `walhouse replay`
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// Deliver what has committed since this position of the WAL, such as 16/B374D848.
    #[arg(long, value_name = "LSN")]
    pub from_lsn: Lsn,
    /// Send the events of that range again too, with the ids that they had.
    #[arg(long)]
    pub events: bool,
    /// Ask for nothing, and say whether it could be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}
