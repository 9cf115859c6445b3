//! What a lane has been handed, and up to where all of it is durable.
//!
//! Rows are numbered as they arrive. Whatever holds rows that are not durable yet (a batch, a
//! truncate, a stop) is entered under the number of its first row; a commit is entered under the
//! number of rows before it. So a commit is durable once no entry that is still open begins
//! before its mark: every earlier row is in an entry that began at or before it, and has closed.
//!
//! The position never falls, and it only ever is one that the stream gave: the end of a commit,
//! or an idle mark.

use crate::event::Lsn;
use std::{
    collections::{BTreeSet, VecDeque},
    time::SystemTime,
};

/// While one entry stays open, every commit after it waits for it: so many marks, and no more.
const MAX_MARKS: usize = 65_536;

/// The account of one lane.
#[derive(Debug)]
pub struct Ledger {
    next_row: u64,
    open: BTreeSet<u64>,
    marks: VecDeque<Mark>,
    durable: Lsn,
}

/// A position of the stream that may be acknowledged once the rows before it are durable.
#[derive(Debug)]
struct Mark {
    rows_before: u64,
    position: Lsn,
    /// When the first commit that this mark stands for happened; `None` for idle marks.
    time: Option<SystemTime>,
}

impl Ledger {
    /// An empty account of a stream that begins at `start`.
    pub fn new(start: Lsn) -> Self {
        Self { next_row: 0, open: BTreeSet::new(), marks: VecDeque::new(), durable: start }
    }

    /// Numbers a row.
    pub fn row(&mut self) -> u64 {
        let row = self.next_row;
        self.next_row += 1;
        row
    }

    /// The number that the next row will have.
    pub fn next_row(&self) -> u64 {
        self.next_row
    }

    /// Something whose first row is `first` is not durable.
    pub fn open(&mut self, first: u64) {
        let new = self.open.insert(first);
        debug_assert!(new, "an entry is opened once");
    }

    /// It is durable now.
    pub fn close(&mut self, first: u64) {
        let open = self.open.remove(&first);
        debug_assert!(open, "only an open entry is closed");
    }

    /// All rows so far belong to commits up to `position`, which is the end of one that happened
    /// at `time`.
    pub fn commit(&mut self, position: Lsn, time: SystemTime) {
        self.mark(position, Some(time));
    }

    /// Nothing before `position` is left to come.
    pub fn idle(&mut self, position: Lsn) {
        self.mark(position, None);
    }

    fn mark(&mut self, position: Lsn, time: Option<SystemTime>) {
        match self.marks.back_mut() {
            // Without a row between them, the later mark says it all.
            Some(last) if last.rows_before == self.next_row => {
                last.position = last.position.max(position);
                last.time = last.time.or(time);
            }
            _ => self.marks.push_back(Mark { rows_before: self.next_row, position, time }),
        }
        if self.marks.len() > MAX_MARKS {
            self.thin();
        }
    }

    /// Leaves out every second mark: what it stands for becomes durable with the next one.
    fn thin(&mut self) {
        let mut thinned = VecDeque::with_capacity(self.marks.len() / 2 + 1);
        let mut marks = self.marks.drain(..);
        while let Some(first) = marks.next() {
            thinned.push_back(match marks.next() {
                Some(second) => Mark { time: first.time.or(second.time), ..second },
                None => first,
            });
        }
        drop(marks);
        self.marks = thinned;
    }

    /// The position up to which everything is durable, and the times of the commits that have
    /// become so since the last call.
    pub fn settle(&mut self) -> (Lsn, Vec<SystemTime>) {
        let first_open = self.open.first().copied().unwrap_or(u64::MAX);
        let mut times = Vec::new();
        while let Some(mark) = self.marks.front()
            && mark.rows_before <= first_open
        {
            self.durable = self.durable.max(mark.position);
            times.extend(mark.time);
            self.marks.pop_front();
        }
        (self.durable, times)
    }

    /// When the oldest commit that is not durable happened.
    pub fn oldest(&self) -> Option<SystemTime> {
        self.marks.iter().find_map(|mark| mark.time)
    }

    /// Whether everything is durable.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty() && self.marks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_commit_is_durable_when_every_row_before_it_is() {
        let mut ledger = Ledger::new(Lsn(5));
        let first = ledger.row();
        ledger.open(first);
        ledger.commit(Lsn(10), NOW);
        let second = ledger.row();
        ledger.open(second);
        ledger.row();
        ledger.commit(Lsn(20), NOW);
        assert_eq!(ledger.settle().0, Lsn(5));
        ledger.close(second);
        assert_eq!(ledger.settle().0, Lsn(5), "a later entry does not help an earlier one");
        ledger.close(first);
        assert_eq!(ledger.settle(), (Lsn(20), vec![NOW, NOW]));
        assert!(ledger.is_settled());
    }

    #[test]
    fn rows_of_a_transaction_that_is_not_complete_move_nothing() {
        let mut ledger = Ledger::new(Lsn(5));
        let first = ledger.row();
        ledger.open(first);
        ledger.close(first);
        assert_eq!(ledger.settle().0, Lsn(5));
        ledger.commit(Lsn(9), NOW);
        assert_eq!(ledger.settle().0, Lsn(9));
    }

    #[test]
    fn a_batch_that_spans_commits_holds_them_all_but_those_before_it() {
        let mut ledger = Ledger::new(Lsn(0));
        ledger.idle(Lsn(3));
        let first = ledger.row();
        ledger.open(first);
        ledger.commit(Lsn(10), NOW);
        ledger.row();
        ledger.commit(Lsn(20), NOW);
        assert_eq!(ledger.settle().0, Lsn(3));
        ledger.close(first);
        assert_eq!(ledger.settle().0, Lsn(20));
    }

    #[test]
    fn what_is_oldest_and_what_is_settled_is_known() {
        let later = NOW + std::time::Duration::from_secs(1);
        let mut ledger = Ledger::new(Lsn(0));
        assert!(ledger.is_settled() && ledger.oldest().is_none());
        let first = ledger.row();
        assert_eq!((first, ledger.row(), ledger.next_row()), (0, 1, 2));
        ledger.open(first);
        assert!(!ledger.is_settled());
        // Without a row between them, two commits are one mark, of the first one's time.
        ledger.commit(Lsn(10), NOW);
        ledger.commit(Lsn(20), later);
        assert_eq!(ledger.oldest(), Some(NOW));
        ledger.close(first);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.settle(), (Lsn(20), vec![NOW]));
        assert!(ledger.is_settled() && ledger.oldest().is_none());
    }

    #[test]
    fn an_early_keepalive_does_not_pull_the_position_back() {
        let mut ledger = Ledger::new(Lsn(50));
        ledger.idle(Lsn(40));
        assert_eq!(ledger.settle().0, Lsn(50));
    }

    /// Random histories against the plain meaning: a commit counts when all its rows' entries closed.
    #[test]
    fn agrees_with_counting_rows_one_by_one() {
        use rand::{RngExt, SeedableRng, rngs::SmallRng};
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut ledger = Ledger::new(Lsn(0));
            let (mut entries, mut row_entry, mut marks) = (Vec::<(u64, bool)>::new(), Vec::<usize>::new(), Vec::new());
            for step in 1..60_u64 {
                match rng.random_range(0..4) {
                    0 | 1 => {
                        let row = ledger.row();
                        let open: Vec<usize> = (0..entries.len()).filter(|&entry| entries[entry].1).collect();
                        if open.is_empty() || rng.random_bool(0.3) {
                            ledger.open(row);
                            entries.push((row, true));
                            row_entry.push(entries.len() - 1);
                        } else {
                            row_entry.push(open[rng.random_range(0..open.len())]);
                        }
                    }
                    2 => {
                        ledger.commit(Lsn(step), NOW);
                        marks.push((row_entry.len(), Lsn(step)));
                    }
                    _ => {
                        let open: Vec<usize> = (0..entries.len()).filter(|&entry| entries[entry].1).collect();
                        if !open.is_empty() {
                            let entry = open[rng.random_range(0..open.len())];
                            entries[entry].1 = false;
                            ledger.close(entries[entry].0);
                        }
                    }
                }
                let plain = marks.iter().filter(|(rows, _)| row_entry[..*rows].iter().all(|&entry| !entries[entry].1));
                let plain = plain.map(|(_, lsn)| *lsn).max().unwrap_or(Lsn(0));
                let durable = ledger.settle().0;
                assert!(durable <= plain, "seed {seed}: {durable} is ahead of {plain}");
                if entries.iter().all(|(_, open)| !open) {
                    assert_eq!(durable, plain, "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn an_entry_that_stays_open_does_not_gather_marks_without_end() {
        let mut ledger = Ledger::new(Lsn(0));
        let open = ledger.row();
        ledger.open(open);
        let commits = 3 * MAX_MARKS as u64;
        for position in 1..=commits {
            ledger.row();
            ledger.commit(Lsn(position), NOW + std::time::Duration::from_secs(position));
        }
        assert_eq!(ledger.oldest(), Some(NOW + std::time::Duration::from_secs(1)));
        assert!(ledger.marks.len() <= MAX_MARKS);
        assert_eq!(ledger.settle().0, Lsn(0));
        ledger.close(open);
        assert_eq!(ledger.settle().0, Lsn(commits));
    }
}
