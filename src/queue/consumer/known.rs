//! Events that are in hand, and those that were handled lately.
//!
//! A queue delivers at least once. What comes again to the same process is known here and not handled a second time; what comes
//! to another one, or after a crash, the effect itself knows, by the event's id.

use std::collections::{HashMap, VecDeque};

/// So many are remembered.
const REMEMBERED: usize = 10_000;

/// What is known of events, by their ids.
#[derive(Debug, Default)]
pub(super) struct Known {
    events: HashMap<String, bool>,
    handled: VecDeque<String>,
}

/// What to do with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// It is to be handled, and in hand from now on.
    First,
    /// It is in hand already.
    InHand,
    /// It was handled.
    Handled,
}

impl Known {
    pub(super) fn meet(&mut self, id: &str) -> Meeting {
        match self.events.get(id) {
            Some(true) => Meeting::Handled,
            Some(false) => Meeting::InHand,
            None => {
                self.events.insert(id.to_owned(), false);
                Meeting::First
            }
        }
    }

    /// It is not in hand any more.
    pub(super) fn part(&mut self, id: &str, handled: bool) {
        if !handled {
            self.events.remove(id);
            return;
        }
        self.events.insert(id.to_owned(), true);
        self.handled.push_back(id.to_owned());
        if self.handled.len() > REMEMBERED
            && let Some(oldest) = self.handled.pop_front()
        {
            self.events.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_handled_once_as_long_as_it_is_remembered() {
        let mut known = Known::default();
        assert_eq!(known.meet("a"), Meeting::First);
        assert_eq!(known.meet("a"), Meeting::InHand);
        known.part("a", false);
        assert_eq!(known.meet("a"), Meeting::First, "what failed is tried again");
        known.part("a", true);
        assert_eq!(known.meet("a"), Meeting::Handled);
        for other in 0..REMEMBERED {
            let id = other.to_string();
            known.meet(&id);
            known.part(&id, true);
        }
        assert_eq!(known.meet("a"), Meeting::First);
        assert_eq!((known.events.len(), known.handled.len()), (REMEMBERED + 1, REMEMBERED));
    }
}
