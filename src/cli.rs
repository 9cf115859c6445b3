//! Commands and flags. What they do is elsewhere; this is what they are called.

mod control;
mod dlq;

pub use control::{PauseArgs, ReplayArgs, ResumeArgs, StatusArgs, WaitArgs, Worker};
pub use dlq::{DlqArgs, DlqCommand, FilterArgs, ListArgs, PurgeArgs, RedriveArgs, ShowArgs};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Glob, Timespan};

/// Lands PostgreSQL's changes in ClickHouse, a second behind, and stays right through every crash.
#[derive(Clone, Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  walhouse --config /etc/walhouse.toml                 stream until stopped
  walhouse check                                       see what is missing before the first run
  WALHOUSE__CLICKHOUSE__PASSWORD=… walhouse run        any key of the file, from the environment

Exit codes:
  0  it ended well; for run: it was stopped by a signal, and drained
  1  something was found, or was not done, as is said; for run: it died, and a restart may help
  2  the command line, the configuration or http.listen is wrong; nothing was tried
  3  run halted: an operator has to act first, as the message says
  4  a server can not be reached, or is not ready: try again
  5  a server refuses, a password or a right for example: walhouse check has the remedy
Those that look at everything, check, status and provision, tell of servers in their lines, and end with 1.
A supervisor should not restart after 2 and 3; systemd: RestartPreventExitStatus=2 3"
)]
pub struct Cli {
    /// The configuration, a TOML file; env:NAME for the text of an environment variable.
    #[arg(long, global = true, value_name = "PATH", env = "WALHOUSE_CONFIG", default_value = "config/walhouse.toml")]
    pub config: PathBuf,
    /// `None` means [`Command::Run`].
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// The command that was asked for; `run` when none was.
    pub fn command_or_run(&self) -> Command {
        self.command.clone().unwrap_or(Command::Run)
    }
}

/// What a supervisor may conclude from the end of the process; told in `--help`.
pub mod exit {
    /// All is well, or it was stopped by a signal.
    pub const FINE: u8 = 0;
    /// A check or a comparison found something, or an error that a restart may mend.
    pub const FOUND: u8 = 1;
    /// The command line, the configuration or an address in it is wrong; as clap has it.
    pub const USAGE: u8 = 2;
    /// `run`: an operator has to act before the next start.
    pub const HALTED: u8 = 3;
    /// A server can not be reached, or is not ready: nothing is wrong with what was asked, and another try may do.
    pub const AWAY: u8 = 4;
    /// A server refuses: a password, a right, or something else that no other try mends.
    pub const DENIED: u8 = 5;
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Create what is missing, copy what is missing, stream until stopped (the default)
    ///
    /// Creates the publication, the slot, the ClickHouse database and its tables where they are
    /// absent, copies the tables while their changes stream, and goes on from the stored position
    /// after a restart. SIGTERM and SIGINT drain and stop it.
    #[command(after_help = "Examples:
  walhouse run
  walhouse run --config /etc/walhouse.toml

Exit codes:
  0  it was stopped by a signal, and drained
  1  it died, or has not drained in time: a restart goes on from the checkpoint
  2  the command line, the configuration or http.listen is wrong
  3  halted: an operator has to act first, as the last line says; a restart halts again")]
    Run,
    /// Connect to everything and say what is ready and what is not
    ///
    /// Looks, and changes nothing. With [queue] it looks at SQS, the queues, the outbox and what the
    /// workers need too. Where walhouse has run before, it says whether run can go on from there.
    #[command(after_help = "Examples:
  walhouse check
  walhouse check --json | jq '.checks[] | select(.outcome == \"failed\")'

Exit codes:
  0  all is ready, warnings aside
  1  something has to be done first: each line with ✗, and the remedy below it
  2  the command line or the configuration is wrong")]
    Check(CheckArgs),
    /// Where it stands: slot, checkpoint, tables, copies, queues, dead letters
    ///
    /// From the two servers and SQS alone, so it works while walhouse run is down, and says so. What can not be reached is
    /// named, and the rest is shown. Changes nothing.
    #[command(after_help = "Examples:
  walhouse status
  walhouse status --watch
  walhouse status --json | jq -r '.findings[].what'

Exit codes:
  0  all is well
  1  something needs a person: what is listed under \"To do\"
  2  the command line or the configuration is wrong
With --watch: that of the last look, when Ctrl-C ends it; 1 if there was none yet.")]
    Status(StatusArgs),
    /// Compare PostgreSQL with ClickHouse, table by table
    ///
    /// Counts and checksums, computed by the two servers at one position of the WAL; names the keys
    /// that differ and their columns. walhouse run must be going: it is waited until ClickHouse has got as far.
    #[command(after_help = "Examples:
  walhouse verify
  walhouse verify --table public.sales_order --table 'crm.*'
  walhouse verify --json --timeout 5m

Exit codes:
  0  both sides are equal
  1  they differ, or a table can not be equal yet or any more, or ClickHouse is too far behind
  2  the command line or the configuration is wrong, or no table matches
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Verify(VerifyArgs),
    /// Copy tables again beside the live ones, then swap
    ///
    /// The daemon fills a fresh table while changes go on in both, and then exchanges the two: the
    /// live one is there all the time. What brings back a table that has stopped.
    #[command(after_help = "Examples:
  walhouse resync public.sales_order --dry-run
  walhouse resync public.sales_order
  walhouse resync 'crm.*' --no-wait

Exit codes:
  0  every table is copied and swapped in; with --no-wait or --dry-run: it was (or would be) asked for
  1  it was refused, or nobody has taken it up in time (it stays asked for), or walhouse has never run
  2  the command line or the configuration is wrong, or a pattern matches no table
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Resync(ResyncArgs),
    /// Stand still: the whole pipeline, workers, or tables
    ///
    /// The pipeline: walhouse run makes durable what it has in memory, and reads the slot no more, until walhouse resume. It
    /// keeps the slot's lock and serves health and metrics. Nothing is lost, but PostgreSQL keeps all WAL meanwhile, on its
    /// disk: it says how much it may. --worker: the worker takes no more events, in every process that runs it; what it has in
    /// hand it finishes, and the queue keeps the rest. --table: changes of the table are not applied any more, and its target
    /// stays readable as it is. All tables share the slot, so these changes are gone for it: resume copies it anew, beside the
    /// one that is there. All of that is stored, and holds over restarts.
    #[command(after_help = "Examples:
  walhouse pause --reason 'ClickHouse is being moved'
  walhouse pause --worker audit --worker operation
  walhouse pause --table public.sales_order --reason 'backfill at the source'
  walhouse pause --dry-run

Exit codes:
  0  it is in force; a pipeline that is down starts paused
  1  it was refused, or nobody has taken it up in time (it stays asked for), or walhouse has never run
  2  the command line or the configuration is wrong, or a pattern matches no table
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Pause(PauseArgs),
    /// Go on with what was paused
    ///
    /// Without a word of workers and tables, the pipeline goes on where it stood. A table is copied anew beside the live one,
    /// which takes as long as a resync.
    #[command(after_help = "Examples:
  walhouse resume
  walhouse resume --worker audit
  walhouse resume --table 'public.*' --no-wait

Exit codes:
  0  it goes on; tables are copied and swapped in
  1  it was refused, or nobody has taken it up in time (it stays asked for), or walhouse has never run
  2  the command line or the configuration is wrong, or a pattern matches no table
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Resume(ResumeArgs),
    /// Deliver changes again, from an earlier position of the WAL on
    ///
    /// Puts right rows in ClickHouse that somebody has damaged or deleted since. Every change has the version that it had, so
    /// the end is the same however often it comes. PostgreSQL keeps what can be delivered again: source.replay_window of WAL
    /// before the checkpoint. Changes from before a table's copy, its last TRUNCATE or its last change of shape are left
    /// out; walhouse resync is for those. What range there is, --from-lsn 0/1 --dry-run tells.
    #[command(after_help = "Examples:
  walhouse replay --from-lsn 16/B374D848 --dry-run
  walhouse replay --from-lsn 16/B374D848
  walhouse replay --from-lsn 16/B374D848 --events

Exit codes:
  0  all was delivered again and is durable; with --no-wait or --dry-run: it was (or can be) asked for
  1  it was refused, or nobody has taken it up in time (it stays asked for), or walhouse has never run
  2  the command line or the configuration is wrong
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Replay(ReplayArgs),
    /// Create what walhouse needs, and put right what differs
    ///
    /// The queues with those of their dead letters, the publication, the slot (whose position it records), the ClickHouse
    /// database and walhouse's own tables in it. To do it again does nothing. run does the same at its start; of the queues,
    /// only where queue.endpoint_url is set, since those in AWS have owners.
    #[command(after_help = "Examples:
  walhouse provision --dry-run
  walhouse provision
  walhouse provision --json | jq '.steps[] | select(.action != \"present\")'
  walhouse provision --new-epoch --dry-run
  walhouse provision --new-epoch --yes

Exit codes:
  0  all is there (in a dry run: or could be)
  1  something could not be looked at, created or changed
  2  the command line or the configuration is wrong, or --new-epoch was asked for without --yes
With --new-epoch, in place of 1:
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Provision(ProvisionArgs),
    /// Look at dead letters, send them home, remove them
    ///
    /// Events that no worker could handle wait in a queue of dead letters until somebody has looked into why; nothing sends
    /// them anywhere by itself. docs/recovery.md is the procedure.
    #[command(after_help = "Examples:
  walhouse dlq list
  walhouse dlq show --queue audit-log 018f3b5e-7c1a-8000-8000-0123456789ab
  walhouse dlq redrive --queue audit-log --dry-run

Exit codes:
  0  it is done
  1  not all was done, or there is no such letter
  2  the command line or the configuration is wrong
  4  a server can not be reached, or is not ready: try again
  5  a server refuses: walhouse check has the remedy")]
    Dlq(DlqArgs),
    /// Ask the running process whether it serves
    ///
    /// For health checks of containers, which need no shell for it. Asks http.listen on this machine: /healthz, or with
    /// --ready /readyz, which is about copies and lag and is no reason for a restart.
    #[command(after_help = "Examples:
  walhouse health
  walhouse health --ready --json

Exit codes:
  0  it serves; with --ready: it has caught up
  1  it does not, or nobody answers there
  2  the command line or the configuration is wrong")]
    Health(HealthArgs),
    /// Print the effective configuration, secrets redacted
    ///
    /// The file, with the environment over it and the defaults filled in.
    #[command(after_help = "Examples:
  walhouse config
  walhouse config --json | jq .batch

Exit codes:
  0  it is printed
  2  the command line or the configuration is wrong")]
    Config(ConfigArgs),
}

impl Command {
    /// Whether standard output is to be JSON.
    pub fn json(&self) -> bool {
        match self {
            Self::Run => false,
            Self::Check(args) => args.json,
            Self::Status(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Resync(args) => args.json,
            Self::Pause(args) => args.json,
            Self::Resume(args) => args.json,
            Self::Replay(args) => args.json,
            Self::Provision(args) => args.json,
            Self::Dlq(args) => args.json,
            Self::Health(args) => args.json,
            Self::Config(args) => args.json,
        }
    }
}

/// `walhouse check`
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `walhouse verify`
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Only tables that match this pattern over schema.table; may be given several times.
    #[arg(long = "table", value_name = "GLOB")]
    pub tables: Vec<Glob>,
    /// How long to wait until ClickHouse has reached PostgreSQL's position.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub timeout: Timespan,
    /// How many keys that differ are named per table, with their columns; the rest are counted.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(..=1000))]
    pub max_keys: u16,
    /// Print the values that differ, too. WARNING: this is data of your rows, and where the output goes, it goes: a
    /// terminal, a log, a ticket. Masked columns show their masks, and long values their beginning.
    #[arg(long)]
    pub show_values: bool,
}

/// `walhouse resync`
#[derive(Clone, Debug, Args)]
pub struct ResyncArgs {
    /// Tables that match this pattern over schema.table.
    #[arg(value_name = "GLOB", required = true)]
    pub tables: Vec<Glob>,
    /// Ask for nothing, and say of which tables it would be.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// `walhouse provision`
#[derive(Clone, Debug, Args)]
pub struct ProvisionArgs {
    /// Change nothing, and say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The source has another history now: it was restored to an earlier point, or is another cluster. Begins a new epoch
    /// at the slot's position, and has every table copied anew beside the one that is there. walhouse run must be down.
    #[arg(long)]
    pub new_epoch: bool,
    /// Do it; without it, --new-epoch says what it would do, and refuses.
    #[arg(long, requires = "new_epoch", conflicts_with = "dry_run")]
    pub yes: bool,
}

/// `walhouse health`
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// Ask whether every copy is done and the lag is small, and say why not.
    #[arg(long)]
    pub ready: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `walhouse config`
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Print JSON instead of TOML.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).expect(line)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_what_happens_without_a_command() {
        let cli = parse("walhouse");
        assert!(matches!(cli.command_or_run(), Command::Run));
        assert_eq!(cli.config, PathBuf::from("config/walhouse.toml"));
    }

    #[test]
    fn the_configuration_may_be_named_before_or_after_the_command() {
        for line in ["walhouse --config a.toml check --json", "walhouse check --json --config a.toml"] {
            let cli = parse(line);
            assert_eq!(cli.config, PathBuf::from("a.toml"), "{line}");
            assert!(matches!(cli.command_or_run(), Command::Check(CheckArgs { json: true })), "{line}");
        }
    }

    #[test]
    fn verify_takes_several_patterns_and_a_time() {
        let Command::Verify(args) =
            parse("walhouse verify --table public.a --table crm.* --timeout 5m").command_or_run()
        else {
            panic!("verify was asked for")
        };
        assert_eq!(args.tables.len(), 2);
        assert_eq!(args.timeout.0.as_secs(), 300);
        for line in ["walhouse verify --table orders", "walhouse verify --timeout soon"] {
            Cli::try_parse_from(line.split(' ')).expect_err(line);
        }
    }

    #[test]
    fn the_queue_may_be_named_before_or_after_what_is_to_be_done() {
        for line in ["walhouse dlq --queue audit-log list --json", "walhouse dlq list --json --queue audit-log"] {
            let Command::Dlq(args) = parse(line).command_or_run() else { panic!("dlq was asked for") };
            assert_eq!((args.queue.map(|queue| queue.label()), args.json), (Some("audit-log"), true), "{line}");
        }
        for line in ["walhouse dlq list --queue orders", "walhouse dlq redrive --rate 0", "walhouse dlq"] {
            Cli::try_parse_from(line.split(' ')).expect_err(line);
        }
    }

    #[test]
    fn workers_and_tables_may_be_named_several_times() {
        let line = "walhouse pause --worker audit --worker data-sync --table public.a --table crm.*";
        let Command::Pause(args) = parse(line).command_or_run() else { panic!("pause was asked for") };
        assert_eq!((args.workers, args.tables.len()), (vec![Worker::Audit, Worker::DataSync], 2));
        let Command::Replay(args) = parse("walhouse replay --from-lsn 0/1A --no-wait").command_or_run() else {
            panic!("replay was asked for")
        };
        assert_eq!((args.from_lsn.0, args.events, args.wait.no_wait), (26, false, true));
        for line in ["walhouse pause --worker data_sync", "walhouse replay", "walhouse replay --from-lsn 26"] {
            Cli::try_parse_from(line.split(' ')).expect_err(line);
        }
    }

    #[test]
    fn every_help_ends_in_examples_and_exit_codes() {
        let mut root = Cli::command();
        root.build();
        let helps = root.get_subcommands_mut().filter(|command| command.get_name() != "help");
        let mut helps: Vec<_> = helps.map(|command| command.render_long_help().to_string()).collect();
        assert_eq!(helps.len(), 12);
        let dlq = root.find_subcommand_mut("dlq").expect("it is there");
        let below = dlq.get_subcommands_mut().filter(|command| command.get_name() != "help");
        helps.extend(below.map(|command| command.render_long_help().to_string()));
        for help in helps.iter().chain([&root.render_long_help().to_string()]) {
            assert!(help.contains("\nExamples:\n  ") && help.contains("\nExit codes:\n  0  "), "{help}");
        }
    }
}
