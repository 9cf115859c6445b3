//! The way home of dead letters, by batches.
//!
//! A batch is as much as SQS takes at once, and SQS decides of each entry by itself. What it confirms may be removed from where
//! it was; what it does not take now is sent again, and what it never takes stays.
//!
//! Of a group of a FIFO queue a batch has one letter at most, and the next one of that group has to wait until that is
//! confirmed: were both in it, and the first had to be sent again, it would come last. For the same reason what stands behind
//! a letter that is never taken stays too.

use super::{
    client::{QueueError, Sqs},
    messages::Message,
    pending::{Destination, MAX_BYTES, MAX_ENTRIES},
    walk::{FIRST_PAUSE, LONGEST_PAUSE, TRIES},
};
use crate::retry::{Backoff, Kind};
use std::collections::{HashSet, VecDeque};
use tokio::time::sleep;

/// Letters that are to go home, in the order in which they were taken.
#[derive(Debug)]
pub(super) struct Homeward {
    waiting: VecDeque<Message>,
    /// Whether groups have an order: a standard queue knows groups too, and keeps none.
    fifo: bool,
}

impl Homeward {
    pub(super) fn new(letters: Vec<Message>, fifo: bool) -> Self {
        Self { waiting: letters.into(), fifo }
    }

    fn group<'m>(&self, letter: &'m Message) -> Option<&'m String> {
        letter.group.as_ref().filter(|_| self.fifo)
    }

    /// Letters that go next and together, `most` of them or fewer; none if no letter is left. Before the next batch it has to
    /// be known of each of them what became of it.
    pub(super) fn batch(&mut self, most: usize) -> Option<Vec<Message>> {
        let (mut batch, mut bytes, mut groups) = (Vec::new(), 0, HashSet::new());
        let mut behind = VecDeque::new();
        while let Some(letter) = self.waiting.pop_front() {
            let size = letter.size(&[]);
            let fits = batch.len() < most.clamp(1, MAX_ENTRIES) && (batch.is_empty() || bytes + size <= MAX_BYTES);
            // Of its group it is the first that is left, or it is not taken.
            let is_first = self.group(&letter).is_none_or(|group| groups.insert(group.clone()));
            if fits && is_first {
                bytes += size;
                batch.push(letter);
            } else {
                behind.push_back(letter);
            }
        }
        self.waiting = behind;
        (!batch.is_empty()).then_some(batch)
    }

    /// Lets go of those that stand behind a letter that stays where it is.
    pub(super) fn behind(&mut self, stays: &Message) -> Vec<Message> {
        let Some(group) = self.group(stays) else { return Vec::new() };
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (behind, others): (Vec<_>, Vec<_>) = all.partition(|letter| letter.group.as_ref() == Some(group));
        self.waiting = others.into();
        behind
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// Those that are confirmed.
    pub(super) arrived: Vec<Message>,
    /// Those that the queue will never take, with its code for it.
    pub(super) refused: Vec<(Message, String)>,
    /// Those of which it is not known, or that are not there.
    pub(super) left: Vec<Message>,
    /// Why there are such.
    pub(super) error: Option<QueueError>,
}

/// Sends a batch, as often as it takes for a while.
pub(super) async fn send(sqs: &Sqs, home: Destination, batch: Vec<Message>) -> Arrival {
    let (mut arrival, mut backoff) = (Arrival::default(), Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
    let mut parts = vec![batch];
    while let Some(mut part) = parts.pop() {
        let error = match sqs.send_home(home, &part).await {
            Ok(sent) => {
                let mut refusal = None;
                let mut again = Vec::new();
                for (letter, sent) in part.into_iter().zip(sent) {
                    match sent {
                        Ok(()) => arrival.arrived.push(letter),
                        Err(why) if why.of_the_message => arrival.refused.push((letter, why.code)),
                        Err(why) => {
                            again.push(letter);
                            refusal = Some(why.code);
                        }
                    }
                }
                let Some(code) = refusal else { continue };
                part = again;
                let message = format!("SQS did not take every letter of a batch for {}: {code}", sqs.name(home));
                QueueError::new(Kind::Transient, message)
            }
            // A queue may take less at once than SQS does.
            Err(error) if error.is_too_much && part.len() > 1 => {
                let second = part.split_off(part.len() / 2);
                parts.extend([second, part]);
                continue;
            }
            Err(error) if error.is_too_much => {
                arrival.refused.extend(part.into_iter().map(|letter| (letter, error.message.clone())));
                continue;
            }
            Err(error) => error,
        };
        parts.push(part);
        if error.kind == Kind::Definite || backoff.failures() + 1 >= TRIES {
            arrival.left = parts.into_iter().rev().flatten().collect();
            arrival.error = Some(error);
            break;
        }
        sleep(backoff.next_delay()).await;
    }
    arrival
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn letter(id: usize, group: Option<u8>, body: usize) -> Message {
        Message {
            id: id.to_string(),
            body: "x".repeat(body),
            group: group.map(|group| group.to_string()),
            ..Message::default()
        }
    }

    fn ids(batch: Option<Vec<Message>>) -> Vec<String> {
        batch.unwrap_or_default().into_iter().map(|letter| letter.id).collect()
    }

    #[test]
    fn a_batch_is_as_much_as_sqs_takes() {
        let mut home = Homeward::new((0..12).map(|id| letter(id, None, 10)).collect(), true);
        assert_eq!((ids(home.batch(10)).len(), ids(home.batch(10)).len()), (10, 2));
        assert!(home.batch(10).is_none());
        let mut home = Homeward::new((0..5).map(|id| letter(id, None, MAX_BYTES / 2)).collect(), true);
        assert_eq!(
            [home.batch(10), home.batch(10), home.batch(10)].map(ids),
            [vec!["0", "1"], vec!["2", "3"], vec!["4"]]
        );
        // The attributes count, and what is alone goes whatever it counts.
        let mut large = letter(0, None, MAX_BYTES);
        large.attributes.insert("eventType".to_owned(), "A".to_owned());
        let mut home = Homeward::new(vec![large, letter(1, None, 1)], true);
        assert_eq!([home.batch(10), home.batch(10)].map(ids), [["0"], ["1"]]);
        let mut home = Homeward::new((0..3).map(|id| letter(id, None, 10)).collect(), true);
        assert_eq!((ids(home.batch(2)).len(), ids(home.batch(0)).len()), (2, 1));
    }

    #[test]
    fn of_a_group_only_the_first_is_on_its_way() {
        let letters =
            || [1, 1, 2, 1, 2, 3].into_iter().enumerate().map(|(id, group)| letter(id, Some(group), 1)).collect();
        // A standard queue has no order to keep.
        assert_eq!(ids(Homeward::new(letters(), false).batch(10)).len(), 6);
        let mut home = Homeward::new(letters(), true);
        let first = home.batch(10).expect("a batch");
        assert_eq!(ids(Some(first.clone())), ["0", "2", "5"]);
        // The first of them stays, and so does what stands behind it.
        assert_eq!(ids(Some(home.behind(&first[0]))), ["1", "3"]);
        assert_eq!(ids(home.batch(10)), ["4"]);
        assert!(home.batch(10).is_none() && home.behind(&letter(9, None, 1)).is_empty());
    }

    proptest! {
        /// Whatever is refused: what arrives of a group is its beginning, in its order, and no letter is forgotten.
        #[test]
        fn a_group_arrives_in_its_order(groups in proptest::collection::vec(0_u8..5, 1..80), fates in proptest::collection::vec(any::<u8>(), 80), most in 0_usize..12) {
            let letters = groups.iter().enumerate().map(|(id, &group)| letter(id, (group > 0).then_some(group), 1 << 17));
            let (mut home, mut fates) = (Homeward::new(letters.collect(), true), fates.into_iter());
            let (mut arrived, mut stayed) = (Vec::new(), Vec::new());
            while let Some(batch) = home.batch(most) {
                prop_assert!(batch.len() <= MAX_ENTRIES && batch.iter().map(|letter| letter.size(&[])).sum::<usize>() <= MAX_BYTES);
                for letter in batch {
                    if fates.next().is_some_and(|fate| fate % 5 == 0) {
                        stayed.extend(home.behind(&letter));
                        stayed.push(letter);
                    } else {
                        arrived.push(letter);
                    }
                }
            }
            prop_assert_eq!(arrived.len() + stayed.len(), groups.len());
            let number = |letter: &Message| letter.id.parse::<usize>().expect("a number");
            for group in (1..5_u8).map(|group| Some(group.to_string())) {
                let of = |all: &[Message]| all.iter().filter(|letter| letter.group == group).map(number).collect::<Vec<_>>();
                let (arrived, stayed) = (of(&arrived), of(&stayed));
                prop_assert!(arrived.is_sorted());
                prop_assert!(arrived.last() < stayed.iter().min() || stayed.is_empty());
            }
        }
    }
}
