//! `walhouse provision --new-epoch`: the operator says that the source has another history now.
//!
//! After a restore to an earlier point, or a move to another cluster, positions of the WAL mean something else than they did,
//! and may fall; so may the oids of tables be others. Nobody can tell which rows of ClickHouse are of a history that never
//! was. So what is known of the tables is carried over by name, every one is copied anew beside its target, and a version of
//! the new epoch wins over every one of the old, whatever its position.
//!
//! The checkpoint is stored last: whatever cuts this short before, the daemon halts as it did, and this can be done again.

use super::provision::PATIENCE;
use crate::{
    cli::exit,
    clickhouse::{
        client::{client, kind},
        ddl,
        requests::{Action, Answer, Requests},
        reshape,
        state::{Checkpoint, State, TableRecord, TableStatus},
    },
    config::Config,
    event::{Epoch, Lsn, SourceTable},
    postgres::{
        catalog::{self, Listing},
        connection::ReplicationConnection,
        creation,
        lock::{self, SlotLock},
        publication::{self, Publication},
        slot::{self, Server},
        sql::{self, SqlError},
    },
    quote,
    setup::{self, SetupError},
};
use clickhouse::Client;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// How often a table that somebody writes is tried to be published.
const ATTEMPTS: u32 = 10;

/// Why no new epoch has begun.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An end can not be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A walhouse is up.
    #[error("{0} holds the slot's lock: stop walhouse run first")]
    Running(String),
    /// There is nothing to carry over.
    #[error(
        "nothing is stored of the slot {0}, so there is no epoch to follow: walhouse provision, without --new-epoch"
    )]
    Nothing(String),
    /// There is no number left.
    #[error("epoch 255 is the last one: copy everything into another clickhouse.database")]
    Last,
    /// A table can not be published.
    #[error("{0} could not be added to the publication: {1}")]
    Unpublished(String, String),
}

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setup(SetupError::Sql(error)) => super::exit_code(error.kind()),
            Self::Setup(SetupError::Connection(error)) => super::exit_code(error.kind()),
            Self::Setup(SetupError::ClickHouse(error)) => super::exit_code(kind(error)),
            _ => exit::FOUND,
        }
    }
}

impl From<SqlError> for Error {
    fn from(error: SqlError) -> Self {
        Self::Setup(error.into())
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Setup(error.into())
    }
}

impl From<clickhouse::error::Error> for Error {
    fn from(error: clickhouse::error::Error) -> Self {
        Self::Setup(error.into())
    }
}

/// What becomes of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotDeed {
    /// It is there and can be used.
    Kept,
    /// It was not there.
    Created,
    /// It had lost WAL.
    Replaced,
}

/// What was done, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct NewEpoch {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The new one.
    pub epoch: u8,
    /// Where the slot stood in the old one.
    pub left_at: String,
    /// Where it begins; `None` in a dry run that would create the slot.
    pub begins_at: Option<String>,
    /// What becomes of the slot.
    pub slot: SlotDeed,
    /// Tables that are copied anew beside their targets.
    pub tables: Vec<String>,
    /// Tables that are paused, and are copied anew when they are resumed.
    pub paused: Vec<String>,
    /// Tables that the source has no more; their targets stay.
    pub gone: Vec<String>,
}

/// What is known of the tables, as it is in the new epoch: by oid, with what becomes of it.
struct Carried {
    records: BTreeMap<u32, TableRecord>,
    /// What was known under oids that mean another table now, or none.
    free: Vec<TableRecord>,
    tables: Vec<String>,
    paused: Vec<String>,
    gone: Vec<String>,
}

/// Begins a new epoch; with `dry_run`, only says what that would do.
///
/// # Errors
/// If it can not be done. The old epoch holds then.
pub async fn begin(config: &Config, dry_run: bool) -> Result<NewEpoch, Error> {
    let source = &config.source;
    let control = sql::connect(source, "walhouse provision").await?;
    setup::fit(&control, config).await?;
    let target = client(&config.clickhouse).with_database(&config.clickhouse.database);
    let _lock = if dry_run { None } else { Some(alone(config, &control).await?) };
    let state = State::load(target.clone(), &source.slot).await?;
    let stored = state.checkpoint().await.ok_or_else(|| Error::Nothing(source.slot.clone()))?;
    let epoch = Epoch(stored.epoch.0.checked_add(1).ok_or(Error::Last)?);
    if !dry_run {
        complete(&target, &state).await?;
    }
    let listing = catalog::tables(&control, source).await?;
    let carried = carry(state.tables().await, &listing.tables);
    let there = There::look(config, &control).await?;
    let mut report = NewEpoch {
        dry_run,
        epoch: epoch.0,
        left_at: stored.lsn.to_string(),
        begins_at: there.stands.map(|at| at.to_string()),
        slot: there.deed,
        tables: carried.tables.clone(),
        paused: carried.paused.clone(),
        gone: carried.gone.clone(),
    };
    if dry_run {
        return Ok(report);
    }
    let There { server, publication, deed, stands } = there;
    let publication = match publication {
        Some(publication) => publication,
        None => publication::create_publication(&control, &source.publication).await?,
    };
    let begins = match stands {
        Some(at) => at,
        None => make_slot(config, &control, deed).await?,
    };
    publish(config, &control, &listing, &carried).await?;
    store(&target, &state, &source.slot, carried).await?;
    state.set_checkpoint(first_checkpoint(epoch, begins, &server, publication)).await?;
    tracing::info!(epoch = epoch.0, position = %begins, "a new epoch has begun");
    report.begins_at = Some(begins.to_string());
    Ok(report)
}

/// Completes what a crash has left half done, since it concerns what the targets are called.
async fn complete(target: &Client, state: &State) -> Result<(), Error> {
    for record in state.tables().await.into_iter().filter(TableRecord::is_undergoing) {
        let completed = reshape::complete(target, state, record).await;
        completed.map_err(|error| SetupError::Definite(error.to_string()))?;
    }
    Ok(())
}

/// What the source has now.
struct There {
    server: Server,
    publication: Option<Publication>,
    /// What becomes of the slot.
    deed: SlotDeed,
    /// Where it stands, if it can be used.
    stands: Option<Lsn>,
}

impl There {
    async fn look(config: &Config, control: &tokio_postgres::Client) -> Result<Self, Error> {
        let source = &config.source;
        let publication = publication::publication(control, &source.publication).await?;
        let connected = ReplicationConnection::connect(&source.url, "walhouse provision").await;
        let mut replication = connected.map_err(SetupError::from)?;
        let asked = Server::ask(control, &mut replication, &source.slot, publication.as_ref()).await;
        let server = asked.map_err(SetupError::from)?;
        if let Some(misfit) = server.slot.as_ref().and_then(|slot| slot.misfit(&source.slot)) {
            return Err(SetupError::Definite(misfit).into());
        }
        let usable = |slot: &slot::Slot| slot.confirmed.filter(|_| !slot.lost);
        let (deed, stands) = match &server.slot {
            Some(slot) => usable(slot).map_or((SlotDeed::Replaced, None), |at| (SlotDeed::Kept, Some(at))),
            None => (SlotDeed::Created, None),
        };
        Ok(Self { server, publication, deed, stands })
    }
}

fn first_checkpoint(epoch: Epoch, begins: Lsn, server: &Server, publication: Publication) -> Checkpoint {
    Checkpoint {
        epoch,
        lsn: begins,
        queue_lsn: begins,
        ceiling: begins,
        system_identifier: server.system_identifier,
        timeline: server.timeline,
        publication: publication.identity,
        outbox: String::new(),
    }
}

/// Nobody else writes meanwhile.
async fn alone(config: &Config, control: &tokio_postgres::Client) -> Result<SlotLock, Error> {
    let session = sql::connect(&config.source, "walhouse lock").await?;
    match tokio::time::timeout(PATIENCE, SlotLock::take(session, &config.source.slot)).await {
        Ok(lock) => Ok(lock?),
        Err(_) => {
            let holder = lock::holder(control, &config.source.slot).await?;
            Err(Error::Running(holder.unwrap_or_else(|| "another walhouse".to_owned())))
        }
    }
}

/// Finds each table that is known in the source again, by its name: oids may be others.
fn carry(records: Vec<TableRecord>, source: &[SourceTable]) -> Carried {
    let oids: HashMap<(&str, &str), u32> =
        source.iter().map(|table| ((table.schema.as_str(), table.name.as_str()), table.oid)).collect();
    let mut carried = Carried {
        records: BTreeMap::new(),
        free: Vec::new(),
        tables: Vec::new(),
        paused: Vec::new(),
        gone: Vec::new(),
    };
    let mut olds = Vec::new();
    for record in records {
        let name = record.full_name();
        let now = oids.get(&(record.schema.as_str(), record.name.as_str())).copied();
        let Some(oid) = now.filter(|_| record.is_adopted()) else {
            // Under its own oid it is let go as a table that was dropped, unless that is another table's now.
            if source.iter().any(|table| table.oid == record.oid) || !record.is_adopted() {
                olds.push(record);
            }
            carried.gone.push(name);
            continue;
        };
        olds.push(record.clone());
        let status = match record.status {
            TableStatus::Paused(why) => {
                carried.paused.push(name);
                TableStatus::Paused(why)
            }
            _ => {
                carried.tables.push(name);
                TableStatus::Resync("a new epoch of the source has begun".to_owned())
            }
        };
        carried.records.insert(oid, TableRecord { oid, status, fresh: None, altering: None, ..record });
    }
    olds.retain(|old| !carried.records.contains_key(&old.oid));
    let gone = |old: TableRecord| TableRecord { status: TableStatus::Gone, fresh: None, altering: None, ..old };
    carried.free = olds.into_iter().map(gone).collect();
    [&mut carried.tables, &mut carried.paused, &mut carried.gone].into_iter().for_each(|names| names.sort());
    carried
}

async fn make_slot(config: &Config, control: &tokio_postgres::Client, deed: SlotDeed) -> Result<Lsn, Error> {
    let name = &config.source.slot;
    if deed == SlotDeed::Replaced {
        control.execute("SELECT pg_drop_replication_slot($1)", &[name]).await?;
    }
    let watcher = sql::connect(&config.source, "walhouse watcher").await?;
    Ok(creation::create_slot(control, &watcher, name).await?)
}

/// The daemon adds tables that are new to it, and none that it knows.
async fn publish(
    config: &Config,
    control: &tokio_postgres::Client,
    listing: &Listing,
    carried: &Carried,
) -> Result<(), Error> {
    let missing = |table: &&SourceTable| {
        carried.records.contains_key(&table.oid) && !listing.memberships.contains_key(&table.oid)
    };
    for table in listing.tables.iter().filter(missing) {
        let unpublished = |why: String| Error::Unpublished(table.full_name(), why);
        // One that has no usable key any more would make the application's updates fail.
        if let Err(why) = &table.key {
            tracing::warn!(table = table.full_name(), why, "a table is not published");
            continue;
        }
        let name = quote::postgres_table(&table.schema, &table.name);
        let mut added = false;
        for _ in 0..ATTEMPTS {
            let add = publication::add_to_publication(control, &config.source.publication, &name).await;
            added = add.map_err(|error| unpublished(error.to_string()))?;
            if added {
                break;
            }
        }
        if !added {
            return Err(unpublished("a transaction that writes it is open; end it, and do this again".to_owned()));
        }
    }
    Ok(())
}

/// A restore of ClickHouse gives tables other UUIDs than those that are stored beside them. That a table is another one is
/// otherwise a reason to stop; here it is copied anew in any case, and what its target has does not count any more.
async fn find_restored(target: &Client, carried: &mut Carried) -> Result<(), Error> {
    let present = ddl::uuids(target).await?;
    for record in carried.records.values_mut() {
        let Some(uuid) = present.get(&record.target).filter(|uuid| **uuid != record.uuid) else { continue };
        if ddl::is_target(target, &record.target).await? {
            record.uuid.clone_from(uuid);
        }
    }
    Ok(())
}

async fn store(target: &Client, state: &State, slot: &str, mut carried: Carried) -> Result<(), Error> {
    find_restored(target, &mut carried).await?;
    // Together: tables may have exchanged their oids.
    state.put_tables(carried.records.into_values().chain(carried.free).collect()).await?;
    let requests = Requests::new(target.clone(), slot);
    for request in requests.look().await?.into_iter().filter(|request| request.action == Action::Replay) {
        let why = "a new epoch has begun: its position is of another history".to_owned();
        requests.answer(&request, &Answer::Refused(why)).await?;
    }
    Ok(())
}

/// For people.
impl fmt::Display for NewEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begun = if self.dry_run { "would begin" } else { "has begun" };
        let at = self.begins_at.as_deref().unwrap_or("the position at which the slot will be created");
        writeln!(f, "Epoch {} {begun} at {at}; the last one was left at {}.", self.epoch, self.left_at)?;
        let slot = match (self.slot, self.dry_run) {
            (SlotDeed::Kept, _) => "is there, and goes on from where it stands",
            (SlotDeed::Created, false) => "was created",
            (SlotDeed::Created, true) => "would be created",
            (SlotDeed::Replaced, false) => "had lost WAL, and was made anew",
            (SlotDeed::Replaced, true) => "has lost WAL, and would be made anew",
        };
        writeln!(f, "The slot {slot}.")?;
        let lines = [
            ("copied anew beside what is there", &self.tables),
            ("paused, and copied anew when it is resumed", &self.paused),
            ("not in the source any more; its table in ClickHouse stays", &self.gone),
        ];
        for (what, tables) in lines {
            for table in tables {
                writeln!(f, "  {table}: {what}")?;
            }
        }
        match self.dry_run {
            true => f.write_str("Nothing was changed. To do it: walhouse provision --new-epoch --yes"),
            false => f.write_str("Start walhouse run: it copies the tables, and walhouse status tells how far it is."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ReplicaIdentity, TableKind, Version};

    fn record(oid: u32, name: &str, status: TableStatus) -> TableRecord {
        TableRecord {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            target: name.to_owned(),
            uuid: name.to_owned(),
            status,
            fed_from: Lsn(7),
            shaped_from: Version::COPY,
            read_until: Lsn::ZERO,
            floor: Version::COPY,
            membership: "m".to_owned(),
            shape: String::new(),
            heaps: BTreeMap::new(),
            altering: None,
            fresh: None,
        }
    }

    fn table(oid: u32, name: &str) -> SourceTable {
        SourceTable {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            kind: TableKind::Table,
            replica_identity: ReplicaIdentity::Default,
            columns: Vec::new(),
            key: Err("of no concern".to_owned()),
            heaps: Vec::new(),
            filter: None,
        }
    }

    #[test]
    fn tables_are_found_again_by_name_whatever_their_oids() {
        let paused = TableStatus::Paused("since".to_owned());
        let records = vec![
            record(1, "a", TableStatus::Streaming),
            record(2, "b", paused.clone()),
            record(3, "c", TableStatus::Streaming),
            record(4, "d", TableStatus::Streaming),
        ];
        // a and b have exchanged their oids, that of c is another table's now, and d is not there.
        let carried = carry(records, &[table(2, "a"), table(1, "b"), table(3, "new")]);
        assert_eq!((carried.records[&2].target.as_str(), carried.records[&1].target.as_str()), ("a", "b"));
        assert!(matches!(carried.records[&2].status, TableStatus::Resync(_)));
        assert_eq!(carried.records[&1].status, paused);
        assert_eq!(
            carried.free.iter().map(|record| (record.oid, &record.status)).collect::<Vec<_>>(),
            [(3, &TableStatus::Gone)]
        );
        assert_eq!(carried.gone, ["public.c", "public.d"]);
    }
}
