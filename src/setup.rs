//! What walhouse needs at both ends before it can stream: looked at, and made where it is missing.
//!
//! The daemon does this at the start of each session, and `walhouse provision` without starting any.

use crate::{
    clickhouse::state::{Checkpoint, State},
    config::Config,
    event::Epoch,
    postgres::{
        connection::{ConnectionError, ReplicationConnection},
        creation,
        publication::{self, Publication},
        slot::{self, AskError, Gap, Remembered, Server},
        sql::{self, SqlError},
    },
};

/// Why there is nothing to stand on.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// PostgreSQL refuses, or was lost.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// Its walsender does.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// ClickHouse refuses, or was lost.
    #[error("{}", crate::clickhouse::client::describe(.0))]
    ClickHouse(#[from] clickhouse::error::Error),
    /// Something was missed.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// Somebody has to act first.
    #[error("{0}")]
    Definite(String),
}

impl From<tokio_postgres::Error> for SetupError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error.into())
    }
}

impl From<AskError> for SetupError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Sql(error) => Self::Sql(error),
            AskError::Connection(error) => Self::Connection(error),
        }
    }
}

/// The first version whose standbys can keep slots.
pub const FAILOVER_SINCE: i32 = 170_000;

/// Whether the server can be a source at all.
///
/// # Errors
/// What it lacks for that, with the remedy.
pub async fn fit(control: &tokio_postgres::Client, config: &Config) -> Result<(), SetupError> {
    let row = control
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), \
             (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), current_user::text, \
             EXISTS (SELECT FROM pg_publication WHERE pubname = $1), \
             has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery(), current_database()::text",
            &[&config.source.publication],
        )
        .await?;
    let (version, wal_level): (i32, &str) = (row.try_get(0)?, row.try_get(1)?);
    let (replication, role, published): (bool, &str, bool) = (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    let (may_create, standby, database): (bool, bool, &str) = (row.try_get(5)?, row.try_get(6)?, row.try_get(7)?);
    let role_name = crate::quote::postgres(role);
    let wrong = if version < 140_000 {
        format!("PostgreSQL {} is too old: walhouse needs 14 or later", version / 10_000)
    } else if config.source.failover && version < FAILOVER_SINCE {
        format!("source.failover needs PostgreSQL 17 or later, and this is {}: remove it", version / 10_000)
    } else if standby {
        "this server is a standby: point source.url at the primary".to_owned()
    } else if wal_level != "logical" {
        format!(
            "wal_level is {wal_level}, and logical replication needs logical: run ALTER SYSTEM SET wal_level = 'logical' \
             and restart PostgreSQL"
        )
    } else if !replication {
        format!("role {role} may not use replication: run ALTER ROLE {role_name} REPLICATION")
    } else if !published && !may_create {
        format!(
            "the publication {} does not exist, and role {role} may not create it: run GRANT CREATE ON DATABASE {} TO \
             {role_name}, or create the publication as its owner",
            config.source.publication,
            crate::quote::postgres(database)
        )
    } else {
        return Ok(());
    };
    Err(SetupError::Definite(wrong))
}

/// Whether what is stored can go on with what the server has.
///
/// # Errors
/// What was missed, or can not be used any more.
pub async fn goes_on(
    stored: &Checkpoint,
    server: &Server,
    slot_name: &str,
    replication: &mut ReplicationConnection,
) -> Result<(), SetupError> {
    let remembered = Remembered {
        lsn: stored.lsn,
        ceiling: stored.ceiling,
        system_identifier: stored.system_identifier,
        timeline: stored.timeline,
        publication: stored.publication.clone(),
    };
    let switch = if server.timeline == stored.timeline {
        None
    } else {
        slot::switch_point(replication, server.timeline, stored.timeline).await?
    };
    if let Some(gap) = server.gap(&remembered, slot_name, switch) {
        return Err(gap.into());
    }
    match server.slot.as_ref().and_then(|slot| slot.misfit(slot_name)) {
        Some(misfit) => Err(SetupError::Definite(misfit)),
        None => Ok(()),
    }
}

/// The first session of a slot: creates it, or takes one that was provisioned, and stores its
/// position before anything else.
///
/// # Errors
/// If what is there can not be used, or a side fails.
pub async fn begin(
    config: &Config,
    control: &tokio_postgres::Client,
    server: &Server,
    publication: Option<Publication>,
    state: &State,
) -> Result<(Checkpoint, Publication), SetupError> {
    let name = &config.source.slot;
    if let Some(misfit) = server.slot.as_ref().and_then(|slot| slot.misfit(name)) {
        return Err(SetupError::Definite(misfit));
    }
    let publication = match publication {
        Some(publication) => publication,
        None => publication::create_publication(control, &config.source.publication).await?,
    };
    let lsn = match &server.slot {
        Some(slot) => match slot.confirmed.filter(|_| !slot.lost) {
            Some(confirmed) => {
                tracing::info!(slot = name, position = %confirmed, "taking a slot that exists already");
                confirmed
            }
            None => {
                return Err(SetupError::Definite(format!(
                    "the replication slot {name} exists and can not be used (it is lost, or was never completed): \
                     run SELECT pg_drop_replication_slot('{name}')"
                )));
            }
        },
        None => {
            let watcher = sql::connect(&config.source, "walhouse watcher").await?;
            let lsn = creation::create_slot(control, &watcher, name).await?;
            tracing::info!(slot = name, position = %lsn, "slot created");
            lsn
        }
    };
    let checkpoint = Checkpoint {
        epoch: Epoch(0),
        lsn,
        queue_lsn: lsn,
        ceiling: lsn,
        system_identifier: server.system_identifier,
        timeline: server.timeline,
        publication: publication.identity.clone(),
        outbox: String::new(),
    };
    state.set_checkpoint(checkpoint.clone()).await?;
    Ok((checkpoint, publication))
}
