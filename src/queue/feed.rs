//! From groups of the stream to steps of the lane: events to send, and positions that count once these are sent.
//!
//! The same stream may come twice: from the source as it goes on, and once more from a place that the lane let go of. So what
//! is handed over begins at a position, and, if that was left in the middle of a transaction, after so many of its events.

use super::{
    outbox::{Origin, Outbox, Seen},
    outgoing::Outgoing,
    pending,
};
use crate::event::{Event, Group, Lsn};
use std::time::SystemTime;

/// One step of the lane.
#[derive(Debug)]
pub enum Step {
    /// An event is to be sent.
    Send(Outgoing),
    /// Everything up to the end of this commit has come.
    Commit(Lsn, SystemTime),
    /// Everything before this position has come.
    Idle(Lsn),
}

impl Step {
    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Send(event) => pending::size(event),
            Self::Commit(..) | Self::Idle(_) => 0,
        }
    }
}

/// Where a feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// What committed before is left out.
    pub position: Lsn,
    /// So many events of the first transaction that comes are left out too.
    pub events: u64,
}

/// Reads steps out of groups.
#[derive(Debug)]
pub struct Feed {
    outbox: Outbox,
    start: Start,
    /// What commits from here on is left out.
    until: Option<Lsn>,
    /// Whether that was reached.
    is_over: bool,
    /// Of the transaction that is open: whether it counts, when it committed, and its events so far.
    open: Option<Open>,
    /// The end of the last transaction, or the last idle mark.
    position: Lsn,
    out: Vec<Outgoing>,
    /// Messages outside of transactions.
    outside: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    counts: bool,
    time: SystemTime,
    events: u64,
}

impl Feed {
    /// A feed that begins at `start`.
    pub fn new(origin: Origin, start: Start) -> Self {
        let (position, outbox) = (start.position, Outbox::new(origin));
        Self { outbox, start, until: None, is_over: false, open: None, position, out: Vec::new(), outside: 0 }
    }

    /// Where another feed goes on.
    pub fn reached(&self) -> Start {
        let events = match self.open {
            Some(open) if open.counts => open.events.max(self.start.events),
            // The transaction of which some are left out is still to come.
            _ => self.start.events,
        };
        Start { position: self.position, events }
    }

    /// Whether no transaction is open.
    pub fn is_between_transactions(&self) -> bool {
        self.open.is_none()
    }

    /// From here on nothing counts any more; `None` if there is no end. Positions that were passed already stay so.
    pub fn end_at(&mut self, until: Option<Lsn>) {
        self.until = until;
        self.is_over = until.is_some_and(|until| self.position >= until);
    }

    /// Whether everything before its end has come.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// How many messages stood outside of transactions since the last call.
    pub fn outside(&mut self) -> u64 {
        std::mem::take(&mut self.outside)
    }

    /// Hands the steps of a group to `each`.
    pub fn take(&mut self, group: &Group, mut each: impl FnMut(Step)) {
        for event in &group.events {
            if let Event::Begin(transaction) = event {
                let ends = self.until.is_some_and(|until| transaction.commit >= until);
                self.is_over |= ends;
                let counts = transaction.commit >= self.start.position && !ends;
                self.open = Some(Open { counts, time: transaction.time, events: 0 });
            }
            if self.outbox.take(&group.data, event, &mut self.out) == Seen::OutsideTransaction {
                self.outside += 1;
            }
            self.send(&mut each);
            match event {
                Event::Commit { end } => {
                    let open = self.open.take();
                    self.reach(*end);
                    if let Some(open) = open.filter(|open| open.counts) {
                        self.start.events = 0;
                        each(Step::Commit(*end, open.time));
                    }
                }
                Event::Idle(position) if *position >= self.start.position => {
                    self.reach(*position);
                    each(Step::Idle(self.position));
                }
                _ => {}
            }
        }
    }

    fn reach(&mut self, position: Lsn) {
        let until = self.until.unwrap_or(Lsn(u64::MAX));
        self.position = self.position.max(position.min(until));
        self.is_over |= self.position >= until;
    }

    fn send(&mut self, each: &mut impl FnMut(Step)) {
        for event in self.out.drain(..) {
            let Some(open) = self.open.as_mut().filter(|open| open.counts) else { continue };
            open.events += 1;
            if open.events > self.start.events {
                each(Step::Send(event));
            }
        }
    }
}
