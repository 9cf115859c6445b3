//! The slot: what the server keeps for us, and whether it and the publication still fit what is
//! stored.
//!
//! PostgreSQL skips in silence what a client has missed: a slot that was advanced, dropped and
//! made again, a start position beyond the end of the WAL, a publication that was away for a
//! while. Nothing in the stream tells of it. So [`Server::gap`] compares, at every connect, and
//! whatever does not fit is a halt with the way out.

use super::{
    connection::{ConnectionError, ReplicationConnection},
    publication::Publication,
    sql::SqlError,
};
use crate::event::Lsn;
use tokio_postgres::Client;

/// What is stored of the source, to be compared with the source itself.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Everything up to here is durable.
    pub lsn: Lsn,
    /// No row of a commit beyond this was ever sent.
    pub ceiling: Lsn,
    /// The cluster.
    pub system_identifier: u64,
    /// The timeline.
    pub timeline: u32,
    /// The publication's identity.
    pub publication: String,
}

/// What the server says of itself and of what it keeps for us.
#[derive(Clone, Debug)]
pub struct Server {
    /// The cluster.
    pub system_identifier: u64,
    /// Its timeline.
    pub timeline: u32,
    /// The end of its WAL.
    pub position: Lsn,
    /// The slot, if it exists.
    pub slot: Option<Slot>,
    /// The publication's identity, if it exists.
    pub publication: Option<String>,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Whether it belongs to the database that we are in.
    pub ours: bool,
    /// Whether it ends with its session.
    pub temporary: bool,
    /// The process that uses it.
    pub active_pid: Option<i32>,
    /// The acknowledged position; `None` while it is being created.
    pub confirmed: Option<Lsn>,
    /// Whether WAL that it needs is gone.
    pub lost: bool,
}

/// Something was missed, or can not be ruled out to have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}. What was missed can not be told, so nothing more is written. {remedy}")]
pub struct Gap {
    /// What does not fit.
    pub what: String,
    /// What an operator does about it.
    pub remedy: String,
}

impl Server {
    /// Asks the server.
    pub async fn ask(
        client: &Client,
        replication: &mut ReplicationConnection,
        slot_name: &str,
        publication: Option<&Publication>,
    ) -> Result<Self, AskError> {
        let rows = replication.command("to identify the system", "IDENTIFY_SYSTEM").await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let field = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        let odd = || ConnectionError::Protocol("an answer to IDENTIFY_SYSTEM that is not one");
        Ok(Self {
            system_identifier: field(0).parse().map_err(|_| odd())?,
            timeline: field(1).parse().map_err(|_| odd())?,
            position: field(2).parse().map_err(|_| odd())?,
            slot: slot(client, slot_name).await?,
            publication: publication.map(|publication| publication.identity.clone()),
        })
    }

    /// What may have been missed since `stored`, if anything. `switch` is where the stored timeline
    /// ended, if the server is on another one now.
    pub fn gap(&self, stored: &Remembered, slot_name: &str, switch: Option<Lsn>) -> Option<Gap> {
        let anew = anew(slot_name);
        let gap = |what: String, remedy: &str| {
            Some(Gap { what, remedy: if remedy.is_empty() { anew.clone() } else { format!("{remedy} {anew}") } })
        };
        if self.system_identifier != stored.system_identifier {
            return gap(
                format!(
                    "this is another PostgreSQL cluster (system identifier {}) than the one that was replicated so far ({})",
                    self.system_identifier, stored.system_identifier
                ),
                "If source.url is wrong, correct it.",
            );
        }
        if self.timeline != stored.timeline && switch.is_none_or(|switch| switch < stored.ceiling) {
            let at = switch.map_or("an unknown position".to_owned(), |lsn| lsn.to_string());
            return gap(
                format!(
                    "the cluster is on timeline {} now and left timeline {} at {at}, but changes up to {} may have \
                     been taken from the old one",
                    self.timeline, stored.timeline, stored.ceiling
                ),
                "",
            );
        }
        if self.position < stored.lsn {
            return gap(
                format!(
                    "the server's WAL ends at {}, before the checkpoint {}: it was restored from an older state",
                    self.position, stored.lsn
                ),
                "",
            );
        }
        let Some(slot) = &self.slot else {
            return gap(
                format!("the replication slot {slot_name} is gone, though everything up to {} is stored", stored.lsn),
                "",
            );
        };
        if slot.lost {
            return gap(
                format!("the server has removed WAL that the slot {slot_name} needs"),
                "Raise max_slot_wal_keep_size (and idle_replication_slot_timeout, where the server has it), or keep walhouse \
                 running.",
            );
        }
        if let Some(confirmed) = slot.confirmed.filter(|confirmed| *confirmed > stored.lsn) {
            return gap(
                format!(
                    "the slot {slot_name} stands at {confirmed}, beyond the checkpoint {}: somebody else has advanced it, \
                     or it was made anew",
                    stored.lsn
                ),
                "",
            );
        }
        publication_gap(&stored.publication, self.publication.as_deref(), slot_name)
    }
}

/// What the publication may have left out, if it is not what is stored.
///
/// The stream tells nothing of it, so whoever streams compares it again from time to time.
pub fn publication_gap(stored: &str, present: Option<&str>, slot_name: &str) -> Option<Gap> {
    let what = match present {
        Some(present) if present == stored => return None,
        Some(present) => format!(
            "the publication was altered or made anew since it was last read (was {stored}, is {present}), and may have \
             left changes out meanwhile"
        ),
        None => "the publication is gone, and with it the changes that were made since".to_owned(),
    };
    Some(Gap { what, remedy: anew(slot_name) })
}

/// The way out that always works.
fn anew(slot_name: &str) -> String {
    format!(
        "To begin anew and have every table copied beside the one that is there: walhouse provision --new-epoch --dry-run. \
         To copy everything anew: stop walhouse, drop the ClickHouse database (or configure another), run SELECT \
         pg_drop_replication_slot('{slot_name}') in PostgreSQL if the slot exists, and start walhouse"
    )
}

/// The server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Over SQL.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Over the replication connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl From<tokio_postgres::Error> for AskError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error.into())
    }
}

/// Where the cluster left `timeline`, from the history of its present one.
pub async fn switch_point(
    replication: &mut ReplicationConnection,
    present: u32,
    timeline: u32,
) -> Result<Option<Lsn>, ConnectionError> {
    let rows = replication.command("to read the timeline's history", &format!("TIMELINE_HISTORY {present}")).await?;
    let history = rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten()).unwrap_or_default();
    Ok(parse_switch_point(&history, timeline))
}

/// A history file has a line for each timeline that was left: its number, where, and why.
fn parse_switch_point(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()?.parse::<u32>().ok()? == timeline).then(|| fields.next()?.parse().ok()).flatten()
    })
}

/// Looks at the slot.
pub async fn slot(client: &Client, name: &str) -> Result<Option<Slot>, SqlError> {
    let row = client
        .query_opt(
            "SELECT plugin::text, database = current_database(), temporary, active_pid, confirmed_flush_lsn::text, \
             wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let confirmed: Option<&str> = row.try_get(4)?;
    Ok(Some(Slot {
        plugin: row.try_get(0)?,
        ours: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
        temporary: row.try_get(2)?,
        active_pid: row.try_get(3)?,
        confirmed: confirmed.and_then(|lsn| lsn.parse().ok()),
        lost: row.try_get::<_, Option<bool>>(5)?.unwrap_or(false),
    }))
}

impl Slot {
    /// Why the slot can not be ours.
    pub fn misfit(&self, name: &str) -> Option<String> {
        let wrong = match (&self.plugin, self.ours, self.temporary) {
            (None, ..) => "is a physical slot".to_owned(),
            (Some(plugin), ..) if plugin != "pgoutput" => format!("has the output plugin {plugin}, not pgoutput"),
            (_, false, _) => "belongs to another database".to_owned(),
            (_, _, true) => "is temporary".to_owned(),
            _ => return None,
        };
        Some(format!("the replication slot {name} exists and {wrong}: choose another source.slot, or drop it"))
    }
}

/// Has the server keep the slot on its standbys too, from PostgreSQL 17 on. Nobody may be reading it.
///
/// # Errors
/// If the server refuses, or was lost.
pub async fn keep_on_standbys(
    client: &Client,
    replication: &mut ReplicationConnection,
    name: &str,
) -> Result<(), AskError> {
    const IS_KEPT: &str = "SELECT (to_jsonb(s) ->> 'failover')::bool FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_opt(IS_KEPT, &[&name]).await?;
    if row.and_then(|row| row.get(0)).unwrap_or(false) {
        return Ok(());
    }
    let alter = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", crate::quote::postgres(name));
    replication.command("to have the slot kept on standbys", &alter).await?;
    tracing::info!(slot = name, "the slot is a failover slot now; a backlog is streamed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Remembered {
        Remembered { lsn: Lsn(100), ceiling: Lsn(150), system_identifier: 7, timeline: 1, publication: "p:1".into() }
    }

    fn server() -> Server {
        let slot = Slot {
            plugin: Some("pgoutput".into()),
            ours: true,
            temporary: false,
            active_pid: None,
            confirmed: Some(Lsn(100)),
            lost: false,
        };
        Server {
            system_identifier: 7,
            timeline: 1,
            position: Lsn(200),
            slot: Some(slot),
            publication: Some("p:1".into()),
        }
    }

    #[test]
    fn what_fits_is_no_gap() {
        assert_eq!(server().gap(&stored(), "s", None), None);
        let promoted = Server { timeline: 2, ..server() };
        assert_eq!(promoted.gap(&stored(), "s", Some(Lsn(150))), None);
    }

    #[test]
    fn whatever_does_not_fit_is_a_gap() {
        let slot = server().slot.unwrap();
        let servers = [
            Server { system_identifier: 8, ..server() },
            Server { timeline: 2, ..server() },
            Server { position: Lsn(99), ..server() },
            Server { slot: None, ..server() },
            Server { slot: Some(Slot { lost: true, ..slot.clone() }), ..server() },
            Server { slot: Some(Slot { confirmed: Some(Lsn(101)), ..slot }), ..server() },
            Server { publication: Some("p:2".into()), ..server() },
            Server { publication: None, ..server() },
        ];
        for server in servers {
            let gap = server.gap(&stored(), "s", None).expect("a gap");
            assert!(gap.to_string().contains("pg_drop_replication_slot('s')"), "{gap}");
        }
        let too_early = Server { timeline: 2, ..server() };
        assert!(too_early.gap(&stored(), "s", Some(Lsn(149))).is_some(), "rows beyond the switch may have been sent");
    }

    #[test]
    fn a_history_tells_where_a_timeline_was_left() {
        let history = "1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tbefore 2020-01-01\n";
        assert_eq!(parse_switch_point(history, 2), Some(Lsn(0x500_0060)));
        assert_eq!(parse_switch_point(history, 3), None);
    }
}
