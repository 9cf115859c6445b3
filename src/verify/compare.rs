//! The comparison itself, apart from any server: which buckets differ, and which keys stay different.

use std::collections::{BTreeMap, HashMap};

use super::report::{Difference, KeyDifference};

/// Observations of a key that must be the same, and different on the two sides, before it counts.
///
/// Fewer would name keys that a writer has just touched: PostgreSQL's snapshot is older than
/// ClickHouse's by the time that the fence took.
const STEADY: u32 = 3;

/// How many rows fell into a bucket, and the sum of their hashes.
///
/// A sum does not depend on order, and 2^63 rows of 2^63 each fit: nothing wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) rows: u64,
    pub(super) sum: i128,
}

/// Buckets by number; one without rows is absent.
pub(super) type Buckets = HashMap<i64, Bucket>;

/// The numbers of the buckets that differ, ascending.
pub(super) fn differing_buckets(postgres: &Buckets, clickhouse: &Buckets) -> Vec<i64> {
    let mut differing: Vec<_> = postgres
        .keys()
        .chain(clickhouse.keys().filter(|bucket| !postgres.contains_key(bucket)))
        .filter(|bucket| postgres.get(bucket) != clickhouse.get(bucket))
        .copied()
        .collect();
    differing.sort_unstable();
    differing
}

/// One row of one side: its hash, its key's hash and its key as text, a part per column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HashedRow {
    pub(super) key_hash: i64,
    pub(super) row_hash: i64,
    pub(super) key: Vec<String>,
}

/// What one side has under a key: one row, or none; more is itself a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    rows: u32,
    sum: i64,
}

impl Seen {
    fn add(&mut self, row_hash: i64) {
        self.rows = self.rows.saturating_add(1);
        self.sum = self.sum.wrapping_add(row_hash);
    }
}

/// What both sides have under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pair {
    postgres: Seen,
    clickhouse: Seen,
}

impl Pair {
    pub(super) fn see(&mut self, side: Side, row_hash: i64) {
        match side {
            Side::Postgres => self.postgres.add(row_hash),
            Side::ClickHouse => self.clickhouse.add(row_hash),
        }
    }

    fn agrees(self) -> bool {
        self.postgres == self.clickhouse
    }

    fn difference(self) -> Difference {
        match (self.postgres.rows, self.clickhouse.rows) {
            (_, 0) => Difference::Missing,
            (0, _) => Difference::Extra,
            _ => Difference::Different,
        }
    }
}

/// Where a row was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Postgres,
    ClickHouse,
}

/// A key that was seen to differ and is looked at again.
#[derive(Debug)]
struct Candidate {
    key: Vec<String>,
    last: Pair,
    /// How often in a row `last` was what was seen.
    same: u32,
}

/// The keys that differ so far, bounded in number.
#[derive(Debug)]
pub(super) struct Candidates {
    open: BTreeMap<i64, Candidate>,
    limit: usize,
    shown: usize,
    differing: Vec<KeyDifference>,
    differing_total: u64,
    unexamined: u64,
}

/// What became of the candidates.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) differing: Vec<KeyDifference>,
    pub(super) differing_total: u64,
    pub(super) still_changing: u64,
    pub(super) unexamined: u64,
}

impl Candidates {
    /// At most `limit` keys are followed, and `shown` of those that differ are named.
    pub(super) fn new(limit: usize, shown: usize) -> Self {
        Self { open: BTreeMap::new(), limit, shown, differing: Vec::new(), differing_total: 0, unexamined: 0 }
    }

    /// A row that the other side does not have, or not like this.
    pub(super) fn suspect(&mut self, side: Side, row: HashedRow) {
        let full = self.open.len() >= self.limit;
        match self.open.get_mut(&row.key_hash) {
            Some(candidate) => candidate.last.see(side, row.row_hash),
            None if full => self.unexamined += 1,
            None => {
                let mut last = Pair::default();
                last.see(side, row.row_hash);
                self.open.insert(row.key_hash, Candidate { key: row.key, last, same: 1 });
            }
        }
    }

    /// The keys to look at again.
    pub(super) fn open(&self) -> impl Iterator<Item = (i64, &[String])> {
        self.open.iter().map(|(hash, candidate)| (*hash, candidate.key.as_slice()))
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Takes a new look at every open key; one that is absent from `seen` is absent on both sides.
    pub(super) fn settle(&mut self, seen: &HashMap<i64, Pair>, names: &[String]) {
        for (hash, mut candidate) in std::mem::take(&mut self.open) {
            let now = seen.get(&hash).copied().unwrap_or_default();
            if now.agrees() {
                continue;
            }
            candidate.same = if now == candidate.last { candidate.same + 1 } else { 1 };
            candidate.last = now;
            if candidate.same < STEADY {
                self.open.insert(hash, candidate);
                continue;
            }
            self.differing_total += 1;
            if self.differing.len() < self.shown {
                self.differing.push(KeyDifference::new(names, &candidate.key, now.difference()));
            }
        }
    }

    pub(super) fn finish(self) -> Outcome {
        Outcome {
            differing: self.differing,
            differing_total: self.differing_total,
            still_changing: self.open.len() as u64,
            unexamined: self.unexamined,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: i64, hash: i64) -> HashedRow {
        HashedRow { key_hash: key, row_hash: hash, key: vec![key.to_string()] }
    }

    fn seen(looks: &[(i64, Side, i64)]) -> HashMap<i64, Pair> {
        let mut seen: HashMap<i64, Pair> = HashMap::new();
        for (key, side, hash) in looks {
            seen.entry(*key).or_default().see(*side, *hash);
        }
        seen
    }

    fn names() -> Vec<String> {
        vec!["id".to_owned()]
    }

    #[test]
    fn buckets_differ_by_count_sum_or_absence() {
        let bucket = |rows, sum| Bucket { rows, sum };
        let postgres = Buckets::from([(0, bucket(1, 5)), (1, bucket(2, 5)), (2, bucket(1, 1)), (4, bucket(9, 9))]);
        let clickhouse = Buckets::from([(0, bucket(1, 5)), (1, bucket(1, 5)), (3, bucket(1, 1)), (4, bucket(9, 8))]);
        assert_eq!(differing_buckets(&postgres, &clickhouse), [1, 2, 3, 4]);
    }

    #[test]
    fn a_key_that_stays_different_is_named_after_the_third_look() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        candidates.suspect(Side::ClickHouse, row(2, 20));
        candidates.suspect(Side::Postgres, row(3, 30));
        candidates.suspect(Side::ClickHouse, row(3, 31));
        let look = seen(&[
            (1, Side::Postgres, 10),
            (2, Side::ClickHouse, 20),
            (3, Side::Postgres, 30),
            (3, Side::ClickHouse, 31),
        ]);
        candidates.settle(&look, &names());
        assert_eq!(candidates.open_count(), 3);
        candidates.settle(&look, &names());
        let outcome = candidates.finish();
        let found: Vec<_> = outcome.differing.iter().map(|d| (d.key.as_str(), d.difference)).collect();
        assert_eq!(
            found,
            [("id=1", Difference::Missing), ("id=2", Difference::Extra), ("id=3", Difference::Different)]
        );
        assert_eq!((outcome.differing_total, outcome.still_changing), (3, 0));
    }

    #[test]
    fn a_key_that_a_writer_keeps_touching_is_still_changing() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        for hash in 11..20 {
            candidates.settle(&seen(&[(1, Side::Postgres, hash), (1, Side::ClickHouse, hash - 1)]), &names());
        }
        let outcome = candidates.finish();
        assert_eq!((outcome.differing_total, outcome.still_changing), (0, 1));
    }

    #[test]
    fn a_key_that_agrees_or_is_gone_is_forgotten() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        candidates.suspect(Side::ClickHouse, row(2, 10));
        candidates.settle(&seen(&[(1, Side::Postgres, 12), (1, Side::ClickHouse, 12)]), &names());
        assert_eq!(candidates.open_count(), 0);
    }

    #[test]
    fn two_rows_under_one_key_are_a_difference() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::ClickHouse, row(1, 10));
        let look = seen(&[(1, Side::Postgres, 10), (1, Side::ClickHouse, 10), (1, Side::ClickHouse, 10)]);
        for _ in 0..3 {
            candidates.settle(&look, &names());
        }
        assert_eq!(candidates.finish().differing[0].difference, Difference::Different);
    }

    #[test]
    fn keys_beyond_the_limit_are_counted_and_not_kept() {
        let mut candidates = Candidates::new(2, 1);
        for key in 0..5 {
            candidates.suspect(Side::Postgres, row(key, 1));
        }
        let look = seen(&[(0, Side::Postgres, 1), (1, Side::Postgres, 1)]);
        candidates.settle(&look, &names());
        candidates.settle(&look, &names());
        let outcome = candidates.finish();
        assert_eq!((outcome.differing.len(), outcome.differing_total, outcome.unexamined), (1, 2, 3));
    }
}
