//! A table that is copied anew: a fresh target is filled beside the live one, while the stream
//! feeds both, and then takes its place.
//!
//! Version 0 is only for a fresh target: in one that has history, an older row of a key would win
//! over what was copied. A target that is frozen is not fed meanwhile; only the fresh one is.

use super::{SessionError, Tables, adopt};
use crate::{
    clickhouse::{
        ddl,
        requests::{Answer, Request},
        reshape::fresh_name,
        sink::Command,
        state::{TableRecord, TableStatus},
        table::{ANEW, Table, TableSpec},
    },
    event::{Lsn, SourceTable},
    postgres::{
        catalog,
        publication::{self, Membership},
    },
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
        self.feed(&table, &now, from, membership.identity.clone(), true).await?;
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

    /// Takes up what operators have asked for, and tells them what became of it.
    pub(super) async fn answer_requests(&mut self, control: &Client) -> Result<(), SessionError> {
        for request in self.shared.requests.open().await? {
            let answer = self.answer_request(control, &request).await?;
            if let Some(answer) = answer {
                self.shared.requests.answer(&request, &answer).await?;
            }
        }
        Ok(())
    }

    async fn answer_request(&mut self, control: &Client, request: &Request) -> Result<Option<Answer>, SessionError> {
        let records = self.shared.state.tables().await;
        let named = |record: &&TableRecord| record.schema == request.schema && record.name == request.name;
        let Some(record) = records.iter().find(named).filter(|record| record.is_adopted()) else {
            return Ok(Some(Answer::Refused("walhouse does not replicate such a table".to_owned())));
        };
        if let Some(uuid) = &request.begun {
            return Ok(match (&record.fresh, &record.status) {
                (Some(_), _) => None,
                (None, TableStatus::Stopped(reason)) => Some(Answer::Refused(reason.clone())),
                (None, TableStatus::Resync(_)) => None,
                (None, _) if record.uuid != *uuid => {
                    let why = "the copy was given up, as the log says; what was there stays. Ask again";
                    Some(Answer::Refused(why.to_owned()))
                }
                (None, _) => Some(Answer::Done),
            });
        }
        if record.fresh.is_none() {
            let Some((source, _)) = catalog::table(control, &self.source, record.oid).await? else {
                return Ok(Some(Answer::Refused("the table was dropped in PostgreSQL".to_owned())));
            };
            let membership =
                publication::memberships(control, &self.publication, Some(record.oid)).await?.remove(&record.oid);
            if membership.is_none() {
                return Ok(Some(Answer::Refused("the table is not in the publication".to_owned())));
            }
            self.begin_resync(control, record, &source, membership.as_ref()).await?;
        }
        let fresh = self.shared.state.table(record.oid).await.and_then(|record| record.fresh);
        Ok(fresh.map(|fresh| Answer::Begun(fresh.uuid)))
    }
}
