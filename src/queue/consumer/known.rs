//! Events that are in hand, and those that were handled lately.
//!
//! A queue delivers at least once. What comes again to the same process is known here and not handled a second time; what comes
//! while the first one is in hand waits for how that ends. What comes to another process, or after a crash, the effect itself
//! knows, by the event's id.

use std::collections::{HashMap, VecDeque};
use tokio::sync::watch;

/// So many are remembered.
const REMEMBERED: usize = 10_000;

/// What is known of events, by their ids.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those in hand with what tells of their end; without it, they were handled.
    events: HashMap<String, Option<watch::Receiver<()>>>,
    handled: VecDeque<String>,
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
}

impl Known {
    pub(super) fn meet(&mut self, id: &str) -> Meeting {
        match self.events.get(id) {
            Some(None) => Meeting::Handled,
            Some(Some(end)) => Meeting::InHand(end.clone()),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_handled_once_as_long_as_it_is_remembered() {
        let mut known = Known::default();
        let Meeting::First(ends) = known.meet("a") else { panic!("it was never met") };
        let Meeting::InHand(end) = known.meet("a") else { panic!("it is in hand") };
        assert!(end.has_changed().is_ok());
        known.part("a", false);
        drop(ends);
        assert!(end.has_changed().is_err(), "whoever waits hears of the end");
        assert!(matches!(known.meet("a"), Meeting::First(_)), "what failed is tried again");
        known.part("a", true);
        assert!(matches!(known.meet("a"), Meeting::Handled));
        for other in 0..REMEMBERED {
            let id = other.to_string();
            known.meet(&id);
            known.part(&id, true);
        }
        assert!(matches!(known.meet("a"), Meeting::First(_)));
        assert_eq!((known.events.len(), known.handled.len()), (REMEMBERED + 1, REMEMBERED));
    }
}
