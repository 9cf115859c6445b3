//! What waits to be sent, in the order of each key.
//!
//! Of the events of one key only the first may be on its way: if a later one were, and the first had to be sent again, it
//! would come last. So a key is busy from when its first event may be sent until that is confirmed, and the others of it wait
//! behind. Events without a key wait for nothing.

use super::outgoing::Outgoing;
use crate::event::envelope::Queue;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::SystemTime,
};

/// SQS takes so many messages at once.
pub const MAX_ENTRIES: usize = 10;
/// SQS takes so many bytes at once, attributes included, and for one message too.
pub const MAX_BYTES: usize = 1 << 20;

/// A queue, or the one of its dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The queue.
    pub queue: Queue,
    /// Whether it is that of its dead letters.
    pub dead: bool,
}

/// An event that waits, or is on its way.
#[derive(Debug)]
pub struct Item {
    /// Its number in the lane.
    pub row: u64,
    /// The event.
    pub event: Outgoing,
    /// What it counts for in a message.
    pub bytes: usize,
    /// When its transaction committed, if the time that it takes from then on is measured.
    pub committed: Option<SystemTime>,
}

/// What waits.
#[derive(Debug, Default)]
pub struct Pending {
    lines: BTreeMap<Destination, Line>,
    bytes: usize,
    /// Where the search for the next batch begins, so that each destination has its turn.
    next: usize,
}

#[derive(Debug, Default)]
struct Line {
    ready: VecDeque<Item>,
    /// Keys that are busy, with the events that wait behind.
    behind: HashMap<String, VecDeque<Item>>,
}

impl Item {
    /// Whether no queue takes it, not even by itself.
    pub fn is_too_large(&self) -> bool {
        self.bytes > MAX_BYTES
    }
}

impl Pending {
    /// Bytes of all that waits or is on its way.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds an event.
    pub fn push(&mut self, row: u64, event: Outgoing, committed: Option<SystemTime>) {
        let bytes = size(&event);
        self.bytes += bytes;
        let destination = Destination { queue: event.queue, dead: event.dead.is_some() };
        let line = self.lines.entry(destination).or_default();
        let item = Item { row, event, bytes, committed };
        let Some(key) = &item.event.key else {
            line.ready.push_back(item);
            return;
        };
        match line.behind.get_mut(key) {
            Some(behind) => behind.push_back(item),
            None => {
                line.behind.insert(key.clone(), VecDeque::new());
                line.ready.push_back(item);
            }
        }
    }

    /// The next events that go together; `None` if none may be sent now.
    pub fn batch(&mut self) -> Option<(Destination, Vec<Item>)> {
        let count = self.lines.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let (destination, line) = self.lines.iter_mut().nth(at)?;
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some(item) = line.ready.front()
                && batch.len() < MAX_ENTRIES
                && (batch.is_empty() || bytes + item.bytes <= MAX_BYTES)
            {
                bytes += item.bytes;
                batch.extend(line.ready.pop_front());
            }
            if !batch.is_empty() {
                self.next = at + 1;
                return Some((*destination, batch));
            }
        }
        None
    }

    /// An event was confirmed: the next one of its key may go.
    pub fn sent(&mut self, destination: Destination, item: &Item) {
        self.bytes -= item.bytes;
        let (Some(line), Some(key)) = (self.lines.get_mut(&destination), &item.event.key) else { return };
        match line.behind.get_mut(key).map(VecDeque::pop_front) {
            Some(Some(next)) => line.ready.push_back(next),
            Some(None) => {
                line.behind.remove(key);
            }
            None => {}
        }
    }

    /// An event refers to the store from now on, and is next to be sent.
    pub fn referred(&mut self, destination: Destination, item: Item) {
        let bytes = size(&item.event);
        self.bytes = self.bytes + bytes - item.bytes;
        self.again(destination, Item { bytes, ..item });
    }

    /// An event has to be sent again, before anything else.
    pub fn again(&mut self, destination: Destination, item: Item) {
        self.lines.entry(destination).or_default().ready.push_front(item);
    }
}

/// What SQS counts: the body, and of each attribute its name, its type and its value. What marks a dead letter is counted
/// generously.
pub fn size(event: &Outgoing) -> usize {
    const MARKS: usize = 256;
    const TYPE: usize = "String".len();
    let attributes: usize = event.attributes.iter().map(|(name, value)| name.len() + TYPE + value.len()).sum();
    let marks = event.dead.as_ref().map_or(0, |reason| reason.len() + MARKS);
    event.body.len() + attributes + marks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(key: Option<&str>, body: usize) -> Outgoing {
        Outgoing {
            queue: Queue::AuditLog,
            dead: None,
            id: String::new(),
            key: key.map(str::to_owned),
            body: "x".repeat(body),
            attributes: Vec::new(),
            span: None,
        }
    }

    fn rows(batch: Option<(Destination, Vec<Item>)>) -> Vec<u64> {
        batch.map(|(_, items)| items.iter().map(|item| item.row).collect()).unwrap_or_default()
    }

    #[test]
    fn of_a_key_only_the_first_is_on_its_way() {
        let mut pending = Pending::default();
        for (row, key) in [(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, None), (5, Some("a")), (6, None)] {
            pending.push(row, event(key, 1), None);
        }
        let (to, mut items) = pending.batch().unwrap();
        assert_eq!(items.iter().map(|item| item.row).collect::<Vec<_>>(), [1, 3, 4, 6]);
        assert!(pending.batch().is_none());
        // The first failed: it goes again before the second of its key.
        let first = items.remove(0);
        pending.again(to, first);
        for item in &items {
            pending.sent(to, item);
        }
        let (to, items) = pending.batch().unwrap();
        assert_eq!(items.iter().map(|item| item.row).collect::<Vec<_>>(), [1]);
        assert!(pending.batch().is_none());
        pending.sent(to, &items[0]);
        let (to, items) = pending.batch().unwrap();
        assert_eq!(items[0].row, 2);
        pending.sent(to, &items[0]);
        let (to, items) = pending.batch().unwrap();
        assert_eq!(items[0].row, 5);
        pending.sent(to, &items[0]);
        assert_eq!((pending.bytes(), pending.batch().is_none()), (0, true));
        assert!(pending.lines.values().all(|line| line.behind.is_empty()));
    }

    #[test]
    fn a_batch_is_bounded_in_messages_and_in_bytes() {
        let mut pending = Pending::default();
        (0..12).for_each(|row| pending.push(row, event(None, 1), None));
        (12..15).for_each(|row| pending.push(row, event(None, MAX_BYTES / 2), None));
        pending.push(15, event(None, 2 * MAX_BYTES), None);
        assert_eq!(rows(pending.batch()), (0..10).collect::<Vec<_>>());
        assert_eq!(rows(pending.batch()), [10, 11, 12]);
        assert_eq!(rows(pending.batch()), [13, 14]);
        assert_eq!(rows(pending.batch()), [15], "what is too large for any is alone");
    }

    #[test]
    fn each_destination_has_its_turn() {
        let mut pending = Pending::default();
        for row in 0..30 {
            pending.push(row, Outgoing { queue: Queue::ALL[row as usize % 3], ..event(None, 1) }, None);
        }
        pending.push(30, Outgoing { dead: Some("why".to_owned()), ..event(None, 1) }, None);
        let mut seen: Vec<_> = std::iter::from_fn(|| pending.batch()).map(|(to, _)| to).collect();
        assert_eq!(seen.len(), 4);
        seen.dedup();
        assert_eq!(seen.len(), 4, "{seen:?}");
    }

    #[test]
    fn a_destination_that_has_nothing_is_passed_over() {
        let mut pending = Pending::default();
        let push = |pending: &mut Pending, queue| {
            (0..10).for_each(|row| pending.push(row, Outgoing { queue, ..event(None, 1) }, None))
        };
        let mut queues = Queue::ALL;
        queues.sort_unstable();
        push(&mut pending, queues[0]);
        push(&mut pending, queues[0]);
        push(&mut pending, queues[1]);
        let next = |pending: &mut Pending| pending.batch().map(|(to, _)| to.queue);
        assert_eq!([next(&mut pending), next(&mut pending)], [Some(queues[0]), Some(queues[1])]);
        assert_eq!((next(&mut pending), next(&mut pending)), (Some(queues[0]), None));
        push(&mut pending, queues[0]);
        push(&mut pending, queues[2]);
        // The first one had its turn, the second has nothing.
        assert_eq!((next(&mut pending), next(&mut pending)), (Some(queues[2]), Some(queues[0])));
    }

    #[test]
    fn bytes_are_what_sqs_counts_and_change_with_what_is_sent() {
        let mut pending = Pending::default();
        let attributes = vec![("name", "value".to_owned())];
        pending.push(0, Outgoing { attributes, dead: Some("why".to_owned()), ..event(None, MAX_BYTES) }, None);
        let all = MAX_BYTES + "nameStringvalue".len() + "why".len() + 256;
        assert_eq!(pending.bytes(), all);
        let (to, mut items) = pending.batch().unwrap();
        let mut item = items.remove(0);
        assert!(item.is_too_large());
        item.event = event(None, 100);
        pending.referred(to, item);
        assert_eq!(pending.bytes(), 100);
        let (to, items) = pending.batch().unwrap();
        assert!(!items[0].is_too_large() && items[0].bytes == 100);
        pending.sent(to, &items[0]);
        pending.push(1, event(None, MAX_BYTES), None);
        assert!(!pending.batch().unwrap().1[0].is_too_large(), "a queue takes just as many");
    }

    proptest! {
        /// Whatever fails and in whatever order answers come: each key arrives in its order.
        #[test]
        fn keys_arrive_in_order(keys in proptest::collection::vec(0_u8..5, 1..80), fates in proptest::collection::vec(any::<u8>(), 400)) {
            let mut pending = Pending::default();
            for (row, key) in keys.iter().enumerate() {
                let key = (*key > 0).then(|| key.to_string());
                pending.push(row as u64, event(key.as_deref(), 10), None);
            }
            let (mut flying, mut arrived) = (Vec::new(), Vec::new());
            let (mut fates, mut losses) = (fates.into_iter().cycle(), 0);
            loop {
                while flying.len() < 3 && let Some(batch) = pending.batch() {
                    flying.push(batch);
                }
                if flying.is_empty() {
                    break;
                }
                let (to, items) = flying.swap_remove(usize::from(fates.next().unwrap_or(0)) % flying.len());
                for item in items {
                    // One in three is lost, but not for ever.
                    if losses < 100 && fates.next().is_some_and(|fate| fate % 3 == 0) {
                        losses += 1;
                        pending.again(to, item);
                    } else {
                        arrived.push((item.event.key.clone(), item.row));
                        pending.sent(to, &item);
                    }
                }
            }
            prop_assert_eq!(arrived.len(), keys.len());
            for key in 1..5_u8 {
                let key = Some(key.to_string());
                let rows: Vec<_> = arrived.iter().filter(|(of, _)| *of == key).map(|(_, row)| *row).collect();
                prop_assert!(rows.is_sorted());
            }
            prop_assert_eq!(pending.bytes(), 0);
        }
    }
}
