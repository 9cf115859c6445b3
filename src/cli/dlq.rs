//! `walhouse dlq`: its words.

use clap::{Args, Subcommand};

use crate::event::envelope::Queue;

/// `walhouse dlq`
#[derive(Clone, Debug, Args)]
pub struct DlqArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DlqCommand,
    /// The queue whose dead letters are meant: data-sync, async-operations or audit-log.
    #[arg(long, global = true, value_name = "QUEUE", value_parser = queue)]
    pub queue: Option<Queue>,
    /// The rows that their tables in ClickHouse can not hold (the table _dead_letters). Without [queue] these are meant
    /// anyway.
    #[arg(long, global = true, conflicts_with = "queue")]
    pub rows: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DlqCommand {
    /// How many there are and which, with the reason of each
    ///
    /// Nothing of what they say inside. Letters are out of others' sight while they are looked at, and come back at once.
    /// Without --queue it goes through all three.
    #[command(after_help = "Examples:
  walhouse dlq list
  walhouse dlq list --queue audit-log --reason timeout --limit 20
  walhouse dlq list --queue audit-log --json | jq -r '.queues[].letters[] | [.event_id, .reason] | @tsv'

Exit codes:
  0  they are listed, also if there is none
  1  a letter could not be looked at
  2  the command line or the configuration is wrong
  4  SQS (for rows: ClickHouse) can not be reached, or is not ready: try again
  5  it refuses: walhouse check has the remedy")]
    List(ListArgs),
    /// One letter whole, by its event's id or its message's
    ///
    /// WARNING: it prints the event itself. This is data, and where the output goes, it goes: a terminal, a log, a ticket.
    #[command(after_help = "Examples:
  walhouse dlq show --queue audit-log 018f3b5e-7c1a-8000-8000-0123456789ab
  walhouse dlq show --queue audit-log 018f3b5e-7c1a-8000-8000-0123456789ab --json | jq .body

Exit codes:
  0  it is shown
  1  there is no such letter, or somebody else has it in hand
  2  the command line or the configuration is wrong
  4  SQS (for rows: ClickHouse) can not be reached, or is not ready: try again
  5  it refuses: walhouse check has the remedy")]
    Show(ShowArgs),
    /// Send letters back to the queue that they came from
    ///
    /// Goes through the letters once. They are sent in batches of ten, and what is known to be there is then removed from the
    /// dead letters: wherever this is cut short, by Ctrl-C or by a crash, nothing is lost. Those of the batch that was in hand
    /// may come twice then, which has no effect a second time, since effects are idempotent by the event's id. In a FIFO queue
    /// a group keeps its order: it has one letter in a batch, and what stands behind one that the queue does not take stays
    /// with it. What a filter passes over is out of others' sight meanwhile, and comes back at the end; after a kill, within
    /// two minutes. Letters that fail once more while this goes on are left alone.
    #[command(after_help = "Examples:
  walhouse dlq redrive --queue audit-log --dry-run
  walhouse dlq redrive --queue audit-log --event-id 018f3b5e-7c1a-8000-8000-0123456789ab
  walhouse dlq redrive --queue audit-log --reason 'given up after' --limit 100 --rate 10

Exit codes:
  0  every letter that was meant was sent (or would be)
  1  it was stopped before, there was none of the given --event-id, a letter is not taken by its queue, or SQS failed: do
     it again
  2  the command line or the configuration is wrong
  4  SQS (for rows: ClickHouse) can not be reached, or is not ready: try again
  5  it refuses: walhouse check has the remedy")]
    Redrive(RedriveArgs),
    /// Remove letters for good
    ///
    /// They can not be brought back. Without --yes it only says how many there are. Payloads in the object store stay there,
    /// until the store's own rule removes them.
    #[command(after_help = "Examples:
  walhouse dlq purge --queue audit-log --type SecurityEventOccurred --dry-run
  walhouse dlq purge --queue audit-log --event-id 018f3b5e-7c1a-8000-8000-0123456789ab --yes

Exit codes:
  0  every letter that was meant is gone (or would be)
  1  it was stopped before, there was none of the given --event-id, a letter is not taken by its queue, or SQS failed: do
     it again
  2  --yes was not said, or the command line or the configuration is wrong
  4  SQS (for rows: ClickHouse) can not be reached, or is not ready: try again
  5  it refuses: walhouse check has the remedy")]
    Purge(PurgeArgs),
}

/// Which letters.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArgs {
    /// Only that of this event, or of this message.
    #[arg(long, value_name = "ID")]
    pub event_id: Option<String>,
    /// Only those of events of this type, such as SecurityEventOccurred.
    #[arg(long = "type", value_name = "NAME")]
    pub event_type: Option<String>,
    /// Only those whose reason has this in it.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only those of this table, as schema.table; of rows alone.
    #[arg(long, value_name = "TABLE", conflicts_with = "queue")]
    pub table: Option<String>,
}

/// `walhouse dlq list`
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How many are listed for each queue; 0 only counts.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
}

/// `walhouse dlq show`
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// The event's id or the message's, as list has it.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Print the payload too where it was too large for a queue and is in the object store. Without it, only where it is.
    #[arg(long)]
    pub payload: bool,
}

/// `walhouse dlq redrive`
#[derive(Clone, Debug, Args)]
pub struct RedriveArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// So many at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// So many in a second at most, in batches of a tenth of that.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: Option<u32>,
    /// Only say how many there are.
    #[arg(long)]
    pub dry_run: bool,
}

/// `walhouse dlq purge`
#[derive(Clone, Debug, Args)]
pub struct PurgeArgs {
    /// Which letters.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// So many at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only say how many there are.
    #[arg(long)]
    pub dry_run: bool,
    /// Do it.
    #[arg(long)]
    pub yes: bool,
}

fn queue(label: &str) -> Result<Queue, String> {
    let known = Queue::ALL.into_iter().find(|queue| queue.label() == label);
    known.ok_or_else(|| format!("it is one of {}", Queue::ALL.map(Queue::label).join(", ")))
}
