//! How the lane follows a table through changes of its shape.
//!
//! A relation that does not fit its target is looked at when the first change in that shape
//! comes, and not before: what was replayed from before an earlier change of shape is dropped
//! unseen. The lane waits for the catalog then; that is rare and short, and keeps the order. The
//! catalog is also looked at every few seconds, since not all that matters shows in the stream;
//! what was seen there counts once the stream has passed the position of the look.
//!
//! To alter a target is a barrier for it. Everything before is durable when it begins, so what is
//! stored with it lets a replay leave that out: it could not be laid onto the new shape.

use super::{Command, Sink, entry::Entry};
use crate::{
    clickhouse::{
        ddl,
        evolve::{Change, Evolution, Step},
        job::{Failure, Job},
        state::{Altering, TableStatus},
        table::{ANEW, Plan, TableSpec},
    },
    event::{Lsn, SourceColumn, SourceTable, Version},
    quote,
    telemetry::{names, tables},
};
use std::collections::BTreeMap;

/// From where it is known what shape a table has.
pub(super) enum Known {
    /// The catalog, read because the change of this transaction is the first in a shape that was
    /// announced; it may be ahead of the stream.
    Announced(u32),
    /// The catalog at a position that the stream has passed.
    Looked,
    /// The catalog at this point of the stream.
    Told,
}

impl Sink {
    /// Lays what was announced onto a target whose shape differs, and says whether it could be: a
    /// change of this version is the first in that shape.
    pub(super) async fn lay(&mut self, index: usize, version: Version, xid: u32) -> Result<bool, Failure> {
        let Some(entry) = self.entries[index].as_ref() else { return Ok(false) };
        let oid = entry.table.spec.oid;
        let Some((now, position)) = self.shared.source.table(oid, xid).await? else {
            self.stop(index, format!("it was dropped in PostgreSQL; what ClickHouse has of it stays. {ANEW}"));
            return Ok(false);
        };
        self.looked_at(index, position);
        self.evolve(index, &now, Known::Announced(xid), version).await?;
        let Some(entry) = self.entries[index].as_ref() else { return Ok(false) };
        if !entry.frozen && entry.plan.is_none() {
            // The catalog is as the target is, and the stream is not: it is between two shapes.
            self.anew(index, "its shape was another for a while".to_owned());
        }
        Ok(self.entries[index].as_ref().is_some_and(|entry| !entry.frozen))
    }

    /// What the catalog showed at `position`, which the stream has passed.
    pub(super) async fn look(&mut self, now: &SourceTable, position: Lsn) -> Result<(), Failure> {
        let Some(route) = self.routes.get(&now.oid).copied() else { return Ok(()) };
        for index in route.members() {
            let known = |entry: &Entry| entry.frozen || entry.looked_at >= position;
            let Some(entry) = self.entries[index].as_ref().filter(|entry| !known(entry)) else { continue };
            if let Some(xid) = entry.told.filter(|_| self.differs(entry, now)) {
                return self.look_again(now.oid, xid).await;
            }
            if entry.heard && self.differs(entry, now) {
                tracing::info!(table = now.full_name(), "the catalog shows a change that was not told");
            }
            self.looked_at(index, position);
            let version = Version::new(self.epoch, self.position, Lsn::ZERO);
            self.evolve(index, now, Known::Looked, version).await?;
        }
        Ok(())
    }

    fn looked_at(&mut self, index: usize, position: Lsn) {
        if let Some(entry) = self.entries[index].as_mut() {
            entry.looked_at = entry.looked_at.max(position);
        }
    }

    fn differs(&self, entry: &Entry, now: &SourceTable) -> bool {
        let change = Change { old: &entry.table.spec, heaps: &entry.heaps, relation: None, xid: None, now };
        !matches!(change.evolution(), Evolution::Same(_, false))
    }

    /// A look differs from what the source told in transaction `xid`. Its snapshot may be the older of
    /// the two, whatever its position: a commit is written before it is seen. So the catalog is asked
    /// once more, by somebody who sees that transaction.
    async fn look_again(&mut self, oid: u32, xid: u32) -> Result<(), Failure> {
        for index in self.routes.get(&oid).copied().into_iter().flat_map(|route| route.members()) {
            if let Some(entry) = self.entries[index].as_mut() {
                entry.told = None;
            }
        }
        if let Some((now, position)) = self.shared.source.table(oid, xid).await? {
            self.ahead.push((position, Command::Look(Box::new(now), position)));
        }
        Ok(())
    }

    pub(super) async fn evolve(
        &mut self,
        index: usize,
        now: &SourceTable,
        known: Known,
        version: Version,
    ) -> Result<(), Failure> {
        let Some(entry) = self.entries[index].as_ref() else { return Ok(()) };
        let (relation, xid) = match known {
            Known::Announced(xid) => (self.announced.get(&now.oid).cloned(), Some(xid)),
            Known::Looked | Known::Told => (None, None),
        };
        let told = matches!(known, Known::Told);
        let change = Change { old: &entry.table.spec, heaps: &entry.heaps, relation: relation.as_deref(), xid, now };
        let heaps: BTreeMap<u32, u64> = now.heaps.iter().map(|heap| (heap.oid, heap.state())).collect();
        let evolution = change.evolution();
        self.doubts.remove(&index);
        match evolution {
            Evolution::Same(spec, stale) => {
                if stale || self.entries[index].as_ref().is_some_and(|entry| entry.heaps != heaps) {
                    self.note(index, *spec, heaps, version);
                }
            }
            Evolution::InPlace(spec, steps) => match self.obstacle(index, &spec, &steps, told, version).await? {
                Some(reason) => self.anew(index, reason),
                None => self.alter(index, *spec, heaps, &steps, told, version),
            },
            Evolution::Anew(reason) => self.anew(index, reason),
            Evolution::Stop(reason) if told => self.doubt(index, reason),
            Evolution::Stop(reason) => self.stop(index, format!("{reason}. {ANEW}")),
        }
        Ok(())
    }

    /// A column has a NULL and its target takes none: it does from this version on.
    pub(super) async fn loosen(&mut self, index: usize, column: &str, version: Version) -> Result<(), Failure> {
        let Some(entry) = self.entries[index].as_ref() else { return Ok(()) };
        let spec = &entry.table.spec;
        let Some(place) = spec.columns.iter().position(|other| other.name == column) else { return Ok(()) };
        let step = Step::Loosen { name: column.to_owned(), ty: spec.columns[place].ty.clone() };
        let heaps = entry.heaps.clone();
        let mut sources = spec.sources.clone();
        sources[place].not_null = false;
        let loose = match spec.with_sources(sources) {
            Ok(loose) => loose,
            Err(reason) => {
                self.stop(index, format!("{reason}. {ANEW}"));
                return Ok(());
            }
        };
        match self.obstacle(index, &loose, std::slice::from_ref(&step), false, version).await? {
            Some(reason) => self.anew(index, reason),
            None => self.alter(index, loose, heaps, &[step], false, version),
        }
        Ok(())
    }

    /// Why a target can not be altered where it is. What only is in the way is set aside, if the source
    /// told of this change.
    async fn obstacle(
        &mut self,
        index: usize,
        new: &TableSpec,
        steps: &[Step],
        told: bool,
        version: Version,
    ) -> Result<Option<String>, Failure> {
        let Some(entry) = self.entries[index].as_ref() else { return Ok(None) };
        let record = self.shared.state.target(new.oid, &entry.table.uuid).await;
        let copying = record.is_some_and(|record| record.status == TableStatus::Copying);
        if copying && steps.iter().any(|step| !matches!(step, Step::Add { .. })) {
            return Ok(Some("its columns changed while it was copied".to_owned()));
        }
        if told {
            return self.clear(index, new, steps, version).await;
        }
        let present = ddl::columns(&self.shared.client, &new.target).await?;
        let altering = entry.naming();
        let is_taken = |name: &String| present.iter().any(|n| n == name) || altering.contains(&quote::clickhouse(name));
        let taken = steps.iter().flat_map(|step| step.new_names(new)).find(is_taken);
        Ok(taken.map(|name| {
            format!("its target has a column {name} already, which was dropped at the source or made in ClickHouse")
        }))
    }

    fn alter(
        &mut self,
        index: usize,
        spec: TableSpec,
        heaps: BTreeMap<u32, u64>,
        steps: &[Step],
        told: bool,
        shaped_from: Version,
    ) {
        self.seal(index);
        let row = self.ledger.row();
        let Some(entry) = self.entries[index].as_mut() else { return };
        self.ledger.open(row);
        let goes = |source: &SourceColumn| spec.sources.iter().all(|other| other.attnum != source.attnum);
        let renames = steps.iter().any(|step| matches!(step, Step::Rename { .. }));
        let by_name = told && (renames || entry.table.spec.sources.iter().any(goes));
        let mut statements: Vec<String> = steps.iter().map(|step| step.statement(&spec)).collect();
        if !entry.fresh {
            statements.push(ddl::create_view(&spec));
        }
        tracing::info!(
            table = spec.full_name(),
            steps = steps.len(),
            "the shape of a table changes; its target follows"
        );
        metrics::counter!(names::SHAPE_CHANGES, "table" => tables::counted(&spec.full_name()), "outcome" => "altered")
            .increment(1);
        let altering = Altering { shape: spec.shape(), shaped_from, statements };
        entry.push(Job::Alter { altering, heaps: heaps.clone(), row, by_name });
        self.queued.insert(index);
        entry.feed.floor = entry.feed.floor.max(shaped_from);
        Self::reshape(entry, spec, heaps);
        entry.plan = self.announced.get(&entry.table.spec.oid).and_then(|r| Plan::new(&entry.table.spec, r).ok());
    }

    /// What is known of the source has changed, and neither its target nor what the stream says of it.
    fn note(&mut self, index: usize, spec: TableSpec, heaps: BTreeMap<u32, u64>, known_from: Version) {
        self.seal(index);
        let row = self.ledger.row();
        let Some(entry) = self.entries[index].as_mut() else { return };
        self.ledger.open(row);
        entry.push(Job::Note { shape: spec.shape(), heaps: heaps.clone(), known_from, row });
        self.queued.insert(index);
        entry.feed.floor = entry.feed.floor.max(known_from);
        Self::reshape(entry, spec, heaps);
    }

    fn reshape(entry: &mut Entry, spec: TableSpec, heaps: BTreeMap<u32, u64>) {
        entry.table = entry.table.reshaped(spec);
        entry.heaps = heaps;
    }

    /// Freezes a target until a copy beside it has taken its place.
    pub(super) fn anew(&mut self, index: usize, reason: String) {
        self.count_copied(index);
        self.end(index, TableStatus::Resync(reason));
    }

    pub(super) fn count_copied(&self, index: usize) {
        if let Some(entry) = self.entries[index].as_ref() {
            let table = entry.table.spec.full_name();
            metrics::counter!(names::SHAPE_CHANGES, "table" => tables::counted(&table), "outcome" => "copied")
                .increment(1);
        }
    }

    pub(super) fn stop(&mut self, index: usize, reason: String) {
        self.end(index, TableStatus::Stopped(reason));
    }

    /// Freezes a target after what it has received so far.
    pub(super) fn end(&mut self, index: usize, status: TableStatus) {
        self.seal(index);
        // A number of its own: what it drops begins here.
        let row = self.ledger.row();
        self.ledger.open(row);
        self.freeze(index, status, vec![row]);
    }
}
