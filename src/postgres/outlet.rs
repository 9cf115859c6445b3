//! Where every reader of the slot hands over what it reads: one stream, whoever reads it.

use super::{
    acknowledged::Acknowledged,
    assembler::{Assembler, StreamError},
};
use crate::{
    event::{Group, Lsn},
    lane::{Delivery, LaneSender, Room, Share},
};
use tokio::sync::watch;

/// The lanes, what was handed to them, and what of it may be acknowledged.
pub struct Outlet {
    pub(super) assembler: Assembler,
    pub(super) room: Room,
    /// What was read and waits for room; the next reader hands it over if this one ends.
    pub(super) held: Option<Group>,
    /// All that the server is ever told.
    pub(super) acknowledged: Acknowledged,
    lanes: Vec<LaneSender>,
    position: watch::Sender<Lsn>,
}

impl Outlet {
    /// An outlet whose stream begins at `start`: the stored checkpoint, or an earlier position that is delivered again.
    pub fn new(start: Lsn, lanes: Vec<LaneSender>, room: Room, acknowledged: Acknowledged) -> Self {
        Self {
            assembler: Assembler::new(start),
            room,
            held: None,
            acknowledged,
            lanes,
            position: watch::channel(start).0,
        }
    }

    /// Hands what is held to every lane, with the room that was taken for it.
    pub(super) fn deliver(&mut self, share: Share) -> Result<(), StreamError> {
        let Some(group) = self.held.take() else { return Ok(()) };
        let delivery = Delivery::new(group, share);
        for lane in &self.lanes {
            lane.send(&delivery).map_err(|_| StreamError::Ended)?;
        }
        self.position.send_replace(self.assembler.position());
        Ok(())
    }

    /// A look at it, for who decides beside the reader.
    pub(super) fn tap(&self) -> Tap {
        Tap { position: self.position.subscribe(), acknowledged: self.acknowledged.clone(), room: self.room.clone() }
    }

    /// Lets the lanes end: nothing more will come.
    pub(super) fn release(&mut self) {
        self.lanes.clear();
    }
}

/// How far an [`Outlet`] is.
pub(super) struct Tap {
    position: watch::Receiver<Lsn>,
    pub(super) acknowledged: Acknowledged,
    room: Room,
}

impl Tap {
    /// Up to where whole transactions were handed over.
    pub(super) fn position(&self) -> Lsn {
        *self.position.borrow()
    }

    /// Whether the lanes take less than they are given.
    pub(super) fn is_backed_up(&self) -> bool {
        self.room.taken() > self.room.bytes() / 2
    }
}
