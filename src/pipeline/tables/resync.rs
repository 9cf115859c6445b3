//! A table that is copied anew: a fresh target is filled beside the live one, while the stream
//! feeds both, and then takes its place.
//!
//! Version 0 is only for a fresh target: in one that has history, an older row of a key would win
//! over what was copied. A target that is frozen is not fed meanwhile; only the fresh one is.

use super::{SessionError, Tables, adopt};
use crate::{
    clickhouse::{
        ddl,
        reshape::fresh_name,
        sink::Command,
        state::{TableRecord, TableStatus},
        table::{ANEW, Table, TableSpec},
    },
    event::{Lsn, SourceTable},
    postgres::publication::Membership,
};
use std::sync::Arc;
use tokio_postgres::Client;

impl Tables {
    /// Begins to fill a fresh target.
    pub(super) async fn begin_resync(
        &mut self,
        control: &Client,
        record: &TableRecord,
        source: &SourceTable,
        membership: Option<&Membership>,
    ) -> Result<(), SessionError> {
        let Some(membership) = membership else { return Ok(()) };
        let (now, from) = match self.shape_of(control, source).await? {
            Ok(found) => found,
            Err(reason) => {
                tracing::warn!(table = source.full_name(), reason, "a table can not be copied anew yet");
                return Ok(());
            }
        };
        let layout = (self.shared.layout)(&now);
        let present = ddl::uuid(&self.shared.client, &record.target).await?;
        let obstacle = match &layout {
            Err(reason) => Some(reason.clone()),
            Ok(_) if present.is_some_and(|uuid| uuid != record.uuid) => {
                Some(format!("ClickHouse has another table {} now: rename or drop that one", record.target))
            }
            Ok(spec) => {
                let beside = TableSpec { target: fresh_name(&record.target), ..spec.clone() };
                ddl::refused(&self.shared.client, &beside).await?
            }
        };
        let (Ok(spec), None) = (layout, &obstacle) else {
            let reason = format!("it can not be copied anew: {}. {ANEW}", obstacle.unwrap_or_default());
            self.freeze(source.oid, TableStatus::Stopped(reason)).await;
            return Ok(());
        };
        let spec = TableSpec { target: fresh_name(&record.target), ..spec };
        let uuid = ddl::create(&self.shared.client, &spec).await?;
        let fresh = adopt::record(&now, &spec, uuid.clone());
        self.shared.state.update_table(source.oid, |record| record.fresh = Some(Box::new(fresh))).await?;
        let table = Table::new(spec, uuid, self.shared.range, Lsn::ZERO);
        self.feed(control, &table, &now, from, membership.identity.clone(), true).await?;
        self.targets.insert(table.uuid.clone(), Arc::clone(&table));
        tracing::info!(table = source.full_name(), "copying a table anew, beside the one that is there");
        self.spawn_copy(now, table);
        Ok(())
    }

    /// Looks after a fresh target.
    pub(super) async fn follow_fresh(
        &mut self,
        control: &Client,
        record: &TableRecord,
        fresh: &TableRecord,
        source: &SourceTable,
        membership: &Membership,
    ) -> Result<(), SessionError> {
        if !fresh.is_adopted() {
            return self.begin_resync(control, record, source, Some(membership)).await;
        }
        match fresh.status {
            TableStatus::Copying => self.resume(&fresh.uuid, source),
            TableStatus::Streaming if self.swapping.insert(fresh.uuid.clone()) => {
                let swapping = |record: &mut TableRecord| record.status = TableStatus::Swapping;
                self.shared.state.update_target(source.oid, &fresh.uuid, swapping).await?;
                // Not before the stream is where the copy read last: else readers would see some rows
                // from later than the others.
                let read_until = self.targets.get(&fresh.uuid).map(|table| table.read_until()).unwrap_or_default();
                self.command(Command::Swap(source.oid, read_until.max(fresh.fed_from))).await;
            }
            _ => {}
        }
        Ok(())
    }
}
