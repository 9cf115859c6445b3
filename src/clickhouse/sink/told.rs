//! How the lane follows a change of shape that the source itself tells of, at its place in the
//! stream.
//!
//! What the catalog showed *then* leaves nothing in doubt: columns are told apart by their numbers,
//! older rows have the default that they had then, and a column that was dropped makes room for
//! another of its name. So the target follows at once, and the relation that is announced with the
//! next row fits already. Where it does not, the triggers have missed something, and the catalog is
//! asked as it always was.
//!
//! Two things are not done at once. A table that has no key for a moment is between two commands:
//! nothing is made of that. And one that has another key stops with the next row, or with the
//! commit, since a further command may have restored it.

use super::{Sink, outside, shape::Known};
use crate::{
    clickhouse::{
        ddl,
        evolve::Step,
        job::{Failure, Job},
        state::Altering,
        table::{ANEW, TableSpec},
    },
    event::{Lsn, SourceTable, Version},
    lane::Told,
    quote,
};
use std::collections::BTreeSet;

/// What follows a column's name when another one takes that.
const DROPPED_SUFFIX: &str = "__dropped";

impl Sink {
    /// Takes in a DDL message.
    pub(super) async fn told(&mut self, content: &[u8], record: Lsn) -> Result<(), Failure> {
        let transaction = self.transaction.ok_or_else(|| outside("a DDL message"))?;
        match self.shared.source.told(content, transaction.xid).await? {
            None => {}
            Some(Told::Dropped(oids)) => {
                let heaps = |oid| self.entries.iter().flatten().any(|entry| entry.heaps.contains_key(oid));
                if oids.iter().any(|oid| self.routes.contains_key(oid) || heaps(oid)) {
                    self.shared.look.notify_one();
                }
            }
            Some(Told::Table(now)) => {
                let version = Version::new(self.epoch, transaction.commit, record);
                let members = self.routes.get(&now.oid).copied().into_iter().flat_map(|route| route.members());
                for index in members.collect::<Vec<_>>() {
                    self.follow(index, &now, version, transaction.xid).await?;
                }
            }
        }
        Ok(())
    }

    async fn follow(&mut self, index: usize, now: &SourceTable, version: Version, xid: u32) -> Result<(), Failure> {
        let Some(entry) = self.entries[index].as_mut() else { return Ok(()) };
        // What the catalog showed after this transaction has been taken in already.
        if entry.frozen || !entry.feed.takes(version) || entry.looked_at > version.commit() {
            return Ok(());
        }
        (entry.told, entry.heard) = (Some(xid), true);
        let spec = &entry.table.spec;
        // The target's name, and what becomes of a table without a key, is for those who see all tables.
        if (&spec.schema, &spec.name) != (&now.schema, &now.name) || now.key.is_err() {
            self.shared.look.notify_one();
        }
        if now.key.is_err() {
            return Ok(());
        }
        let known = |attnum: i16| spec.sources.iter().chain(&spec.excluded).any(|source| source.attnum == attnum);
        let gone = spec.sources.iter().any(|source| now.columns.iter().all(|column| column.attnum != source.attnum));
        let added = now.columns.iter().any(|column| !known(column.attnum));
        if gone && added {
            // One after the other: a new column may have the name of one that goes.
            let columns = now.columns.iter().filter(|column| known(column.attnum)).cloned().collect();
            let without = SourceTable { columns, ..now.clone() };
            self.evolve(index, &without, Known::Told, version).await?;
        }
        if self.entries[index].as_ref().is_some_and(|entry| !entry.frozen) {
            self.evolve(index, now, Known::Told, version).await?;
        }
        Ok(())
    }

    /// What the source told would stop a table, if it stays so.
    pub(super) fn doubt(&mut self, index: usize, reason: String) {
        self.doubts.insert(index, reason);
    }

    /// Stops what is in doubt: there is no further command before what comes now.
    pub(super) fn settle_doubts(&mut self, which: Option<usize>) {
        let chosen: Vec<usize> =
            self.doubts.keys().copied().filter(|index| which.is_none_or(|w| w == *index)).collect();
        for index in chosen {
            let reason = self.doubts.remove(&index).unwrap_or_default();
            if self.entries[index].as_ref().is_some_and(|entry| !entry.frozen) {
                self.stop(index, format!("{reason}. {ANEW}"));
            }
        }
    }

    /// Makes room for the names that `steps` give, where columns that were dropped at the source still
    /// have them; or why there is none.
    pub(super) async fn clear(
        &mut self,
        index: usize,
        new: &TableSpec,
        steps: &[Step],
        version: Version,
    ) -> Result<Option<String>, Failure> {
        let Some(entry) = self.entries[index].as_ref() else { return Ok(None) };
        let mut taken: BTreeSet<String> = ddl::columns(&self.shared.client, &new.target).await?.into_iter().collect();
        let live: BTreeSet<String> =
            entry.table.spec.columns.iter().flat_map(|column| column.native()).map(|(name, _)| name).collect();
        let queued = entry.naming();
        let is_taken =
            |taken: &BTreeSet<String>, name: &str| taken.contains(name) || queued.contains(&quote::clickhouse(name));
        let mut statements = Vec::new();
        for name in
            steps.iter().flat_map(|step| step.new_names(new)).filter(|name| is_taken(&taken, name)).collect::<Vec<_>>()
        {
            if live.contains(&name) {
                return Ok(Some(format!("the name {name} went from one column to another")));
            }
            let numbered = (2..).map(|number| format!("{name}{DROPPED_SUFFIX}_{number}"));
            let free = std::iter::once(format!("{name}{DROPPED_SUFFIX}"))
                .chain(numbered)
                .find(|free| !is_taken(&taken, free) && !new.columns.iter().any(|column| column.name == *free));
            let Some(free) = free else { continue };
            let aside = Step::Rename { from: name, to: free.clone() };
            statements.push(aside.statement(new));
            taken.insert(free);
        }
        if !statements.is_empty() {
            self.set_aside(index, statements, version);
        }
        Ok(None)
    }

    /// An alteration of its own: to repeat it together with the one that makes a new column of the same
    /// name would set that one aside.
    fn set_aside(&mut self, index: usize, statements: Vec<String>, shaped_from: Version) {
        self.seal(index);
        let row = self.ledger.row();
        let Some(entry) = self.entries[index].as_mut() else { return };
        self.ledger.open(row);
        let altering = Altering { shape: entry.table.spec.shape(), shaped_from, statements };
        let heaps = entry.heaps.clone();
        entry.push(Job::Alter { altering, heaps, row, by_name: true });
        self.queued.insert(index);
    }
}
