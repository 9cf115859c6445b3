//! Events that are in hand, and those that were handled lately.
//!
//! A queue delivers at least once, and what sends to it may send twice around a crash. What comes again to the same process is
//! known here and not handled a second time; what comes while the first one is in hand waits for how that ends. What comes to
//! another process, or after a crash, the effect itself knows, by the event's id.
//!
//! An event that was refused for good is a dead letter, and a second copy of it would be a second letter. It is left out too;
//! but nothing that anybody wants to be tried again may be taken for such a copy. So a copy has the very same body, has never
//! been a dead letter itself, and was sent before the letter was or right after it, as the first minute after a crash does.

use super::super::{letters, messages::Message};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// So many are remembered.
const REMEMBERED: usize = 10_000;
/// How long after a letter a copy of its event may be sent: what was sent before a crash may be handled before the restart
/// sends it again.
const LATE: Duration = Duration::from_secs(60);

/// What is known of events, by their ids.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those in hand with what tells of their end; without it, they were handled.
    events: HashMap<String, Option<watch::Receiver<()>>>,
    handled: VecDeque<String>,
    /// Those that were refused for good.
    buried: HashMap<String, Buried>,
    letters: VecDeque<String>,
}

/// A letter that this process has made, which SQS has taken.
#[derive(Debug)]
struct Buried {
    body: [u8; 32],
    at: SystemTime,
}

/// What to do with an event.
#[derive(Debug)]
pub(super) enum Meeting {
    /// It is to be handled, and in hand from now on. To drop this tells whoever waits for it that it is not any more.
    First(watch::Sender<()>),
    /// It is in hand already, until this is closed. It is to be met once more then.
    InHand(watch::Receiver<()>),
    /// It was handled.
    Handled,
    /// It is a dead letter.
    Buried,
}

impl Known {
    /// What to do with an event, and with the message that brought it.
    pub(super) fn meet(&mut self, id: &str, message: &Message) -> Meeting {
        match self.events.get(id) {
            Some(None) => Meeting::Handled,
            Some(Some(end)) => Meeting::InHand(end.clone()),
            None if self.buried.get(id).is_some_and(|buried| buried.is_copied_by(message)) => Meeting::Buried,
            None => {
                let (ends, end) = watch::channel(());
                self.events.insert(id.to_owned(), Some(end));
                Meeting::First(ends)
            }
        }
    }

    /// It is not in hand any more.
    pub(super) fn part(&mut self, id: &str, handled: bool) {
        if !handled {
            self.events.remove(id);
            return;
        }
        self.events.insert(id.to_owned(), None);
        self.handled.push_back(id.to_owned());
        if self.handled.len() > REMEMBERED
            && let Some(oldest) = self.handled.pop_front()
        {
            self.events.remove(&oldest);
        }
    }

    /// The event was refused for good, and SQS has its letter.
    pub(super) fn bury(&mut self, id: &str, message: &Message) {
        let buried = Buried { body: Sha256::digest(&message.body).into(), at: SystemTime::now() };
        // Of one that was sent home and refused once more, the last letter counts.
        if self.buried.insert(id.to_owned(), buried).is_none() {
            self.letters.push_back(id.to_owned());
        }
        if self.letters.len() > REMEMBERED
            && let Some(oldest) = self.letters.pop_front()
        {
            self.buried.remove(&oldest);
        }
    }
}

impl Buried {
    fn is_copied_by(&self, message: &Message) -> bool {
        !letters::was_dead(message)
            && message.sent.is_some_and(|sent| sent <= self.at + LATE)
            && <[u8; 32]>::from(Sha256::digest(&message.body)) == self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> Message {
        Message { body: body.to_owned(), sent: Some(SystemTime::now()), ..Message::default() }
    }

    #[test]
    fn an_event_is_handled_once_as_long_as_it_is_remembered() {
        let (mut known, message) = (Known::default(), message("{}"));
        let Meeting::First(ends) = known.meet("a", &message) else { panic!("it was never met") };
        let Meeting::InHand(end) = known.meet("a", &message) else { panic!("it is in hand") };
        assert!(end.has_changed().is_ok());
        known.part("a", false);
        drop(ends);
        assert!(end.has_changed().is_err(), "whoever waits hears of the end");
        assert!(matches!(known.meet("a", &message), Meeting::First(_)), "what failed is tried again");
        known.part("a", true);
        assert!(matches!(known.meet("a", &message), Meeting::Handled));
        for other in 0..REMEMBERED {
            let id = other.to_string();
            known.meet(&id, &message);
            known.part(&id, true);
        }
        assert!(matches!(known.meet("a", &message), Meeting::First(_)));
        assert_eq!((known.events.len(), known.handled.len()), (REMEMBERED + 1, REMEMBERED));
    }

    #[test]
    fn only_a_copy_of_what_is_a_dead_letter_is_left_out() {
        let (mut known, first) = (Known::default(), message("{}"));
        known.meet("a", &first);
        known.bury("a", &first);
        known.part("a", false);
        assert!(matches!(known.meet("a", &first), Meeting::Buried));
        let mut is_tried = |message: &Message, why: &str| {
            assert!(matches!(known.meet("a", message), Meeting::First(_)), "{why}");
            known.part("a", false);
        };
        let with = |name: &str| {
            let attributes = [(name.to_owned(), "x".to_owned())].into();
            Message { attributes, ..message("{}") }
        };
        is_tried(&letters::revived(&first), "walhouse has sent it home");
        is_tried(&with("deadLetterReason"), "SQS has sent it home");
        is_tried(&message("{ }"), "it says something else");
        is_tried(&Message { sent: None, ..message("{}") }, "nobody knows when it was sent");
        let later = SystemTime::now() + 2 * LATE;
        is_tried(&Message { sent: Some(later), ..message("{}") }, "somebody has sent it long after");
        assert!(matches!(known.meet("a", &with("eventType")), Meeting::Buried));
        for other in 0..REMEMBERED {
            known.bury(&other.to_string(), &first);
        }
        assert!(matches!(known.meet("a", &first), Meeting::First(_)), "so many are remembered");
        assert_eq!((known.buried.len(), known.letters.len()), (REMEMBERED, REMEMBERED));
    }
}
