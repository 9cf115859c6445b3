//! From groups of the stream to steps of the lane: events to send, and positions that count once these are sent.
//!
//! The same stream may come twice: from the source as it goes on, and once more from a place that the lane let go of. So what
//! is handed over begins at a position, and, if that was left in the middle of a transaction, after so many of its events. Where
//! one feed has come to, another one can go on.

use super::{
    outbox::{Origin, Outbox, Seen},
    outgoing::Outgoing,
};
use crate::event::{Event, Group, Lsn};
use std::time::SystemTime;

/// One step of the lane.
#[derive(Debug)]
pub enum Step {
    /// An event is to be sent.
    Send {
        /// What is to be sent.
        event: Box<Outgoing>,
        /// Where its transaction committed.
        commit: Lsn,
        /// When.
        time: SystemTime,
    },
    /// Everything before this position has come.
    Passed(Lsn),
}

/// Where a feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The transaction that is open.
    open: Option<Open>,
    /// The end of the last transaction, or the last idle mark.
    position: Lsn,
    out: Vec<Outgoing>,
    /// Messages outside of transactions.
    outside: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    commit: Lsn,
    time: SystemTime,
    /// How many there were of it so far, if it counts.
    events: u64,
}

impl Feed {
    /// A feed that begins at `start`.
    pub fn new(origin: Origin, start: Start) -> Self {
        let (position, outbox) = (start.position, Outbox::new(origin));
        Self { outbox, start, open: None, position, out: Vec::new(), outside: 0 }
    }

    /// Where another feed goes on.
    pub fn reached(&self) -> Start {
        let events = match self.open {
            Some(open) if self.counts(open) => open.events.max(self.start.events),
            // The transaction of which some are left out is still to come.
            _ => self.start.events,
        };
        Start { position: self.position, events }
    }

    /// The commit of the newest transaction of which anything was handed over, or a position after it.
    pub fn newest(&self) -> Lsn {
        self.open.map_or(self.position, |open| open.commit.max(self.position))
    }

    /// What another feed has handed over, up to where it has come, is left out from now on.
    pub fn go_on_from(&mut self, reached: Start) {
        if reached > self.reached() {
            self.start = reached;
            self.position = reached.position;
        }
    }

    fn counts(&self, open: Open) -> bool {
        open.commit >= self.start.position
    }

    /// How many messages stood outside of transactions since the last call.
    pub fn outside(&mut self) -> u64 {
        std::mem::take(&mut self.outside)
    }

    /// Hands the steps of a group to `each`.
    pub fn take(&mut self, group: &Group, mut each: impl FnMut(Step)) {
        for event in &group.events {
            if let Event::Begin(transaction) = event {
                self.open = Some(Open { commit: transaction.commit, time: transaction.time, events: 0 });
            }
            if self.outbox.take(&group.data, event, &mut self.out) == Seen::OutsideTransaction {
                self.outside += 1;
            }
            self.send(&mut each);
            match event {
                Event::Commit { end } => {
                    let open = self.open.take().filter(|open| self.counts(*open));
                    self.position = self.position.max(*end);
                    if open.is_some() {
                        self.start.events = 0;
                        each(Step::Passed(*end));
                    }
                }
                Event::Idle(position) if *position >= self.start.position => {
                    self.position = self.position.max(*position);
                    each(Step::Passed(*position));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, each: &mut impl FnMut(Step)) {
        for event in self.out.drain(..) {
            let start = self.start.position;
            let Some(open) = self.open.as_mut().filter(|open| open.commit >= start) else { continue };
            open.events += 1;
            if open.events > self.start.events {
                each(Step::Send { event: Box::new(event), commit: open.commit, time: open.time });
            }
        }
    }
}
