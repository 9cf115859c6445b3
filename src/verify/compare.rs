//! The comparison itself, apart from any server: which buckets differ, and which keys stay different.

use std::collections::{BTreeMap, HashMap};

use super::{
    report::{Difference, KeyDifference, ValueDifference},
    table::TablePair,
};

/// Observations of a key that must be the same, and different on the two sides, before it counts.
///
/// Fewer would name keys that a writer has just touched: PostgreSQL's snapshot is older than
/// ClickHouse's by the time that the fence took. "The same" includes the marks: a row that goes back
/// and forth between two values would else be seen out of step again and again.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HashedRow {
    pub(super) key_hash: i64,
    pub(super) row_hash: i64,
    /// Another after every change of the row, also after one that brought its values back.
    pub(super) mark: i64,
    pub(super) key: Vec<String>,
    pub(super) columns: RowColumns,
}

/// What was asked of the columns of a row, in the order of the table's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RowColumns {
    pub(super) hashes: Vec<i64>,
    /// The beginning of each value.
    pub(super) values: Vec<Option<String>>,
    /// The key as PostgreSQL prints it.
    pub(super) source_key: Vec<String>,
}

/// What one side has under a key: one row, or none; more is itself a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    rows: u32,
    sum: i64,
    marks: i64,
}

impl Seen {
    fn add(&mut self, row: &HashedRow) {
        self.rows = self.rows.saturating_add(1);
        self.sum = self.sum.wrapping_add(row.row_hash);
        self.marks = self.marks.wrapping_add(row.mark);
    }
}

/// What both sides have under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pair {
    postgres: Seen,
    clickhouse: Seen,
}

impl Pair {
    fn see(&mut self, side: Side, row: &HashedRow) {
        match side {
            Side::Postgres => self.postgres.add(row),
            Side::ClickHouse => self.clickhouse.add(row),
        }
    }

    fn agrees(self) -> bool {
        let content = |seen: Seen| (seen.rows, seen.sum);
        content(self.postgres) == content(self.clickhouse)
    }

    fn difference(self) -> Difference {
        match (self.postgres.rows, self.clickhouse.rows) {
            (_, 0) => Difference::Missing,
            (0, _) => Difference::Extra,
            (1, 1) => Difference::Different,
            _ => Difference::Doubled,
        }
    }
}

/// What one look has found under a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pair: Pair,
    postgres: RowColumns,
    clickhouse: RowColumns,
}

impl Look {
    pub(super) fn see(&mut self, side: Side, row: HashedRow) {
        self.pair.see(side, &row);
        match side {
            Side::Postgres => self.postgres = row.columns,
            Side::ClickHouse => self.clickhouse = row.columns,
        }
    }

    /// Names the key and its columns, if this look has asked for them.
    fn named(self, table: &TablePair, key: &[String]) -> Option<KeyDifference> {
        let Self { pair, postgres, clickhouse } = self;
        if postgres.hashes.is_empty() && clickhouse.hashes.is_empty() {
            return None;
        }
        if table.log.is_some() {
            let values = if postgres.values.is_empty() { clickhouse.values } else { postgres.values };
            let counts = [pair.postgres, pair.clickhouse].map(|seen| seen.sum);
            return Some(KeyDifference::of_row(table, key, values, pair.difference(), counts));
        }
        let mut named = KeyDifference::new(&table.key, key, pair.difference(), postgres.source_key);
        if named.difference != Difference::Different {
            return Some(named);
        }
        let mut values = postgres.values.into_iter().zip(clickhouse.values);
        for (column, (source, target)) in table.columns.iter().zip(postgres.hashes.iter().zip(&clickhouse.hashes)) {
            let shown = values.next();
            if source != target {
                named.columns.push(column.name.clone());
                named.values.extend(shown.map(|shown| ValueDifference::new(&column.name, shown)));
            }
        }
        Some(named)
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
            Some(candidate) => candidate.last.see(side, &row),
            None if full => self.unexamined += 1,
            None => {
                let mut last = Pair::default();
                last.see(side, &row);
                self.open.insert(row.key_hash, Candidate { key: row.key, last, same: 1 });
            }
        }
    }

    /// The keys to look at again, and whether the next look can be the one that names them: only
    /// then their columns are asked for.
    pub(super) fn open(&self) -> impl Iterator<Item = (i64, &[String], bool)> {
        let mut room = self.shown.saturating_sub(self.differing.len());
        self.open.iter().map(move |(hash, candidate)| {
            let named = candidate.same + 1 >= STEADY && room > 0;
            room -= usize::from(named);
            (*hash, candidate.key.as_slice(), named)
        })
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Takes a new look at every open key; one that is absent from `seen` is absent on both sides.
    pub(super) fn settle(&mut self, mut seen: HashMap<i64, Look>, table: &TablePair) {
        for (hash, mut candidate) in std::mem::take(&mut self.open) {
            let look = seen.remove(&hash).unwrap_or_default();
            if look.pair.agrees() {
                continue;
            }
            candidate.same = if look.pair == candidate.last { candidate.same + 1 } else { 1 };
            candidate.last = look.pair;
            if candidate.same < STEADY {
                self.open.insert(hash, candidate);
                continue;
            }
            self.differing_total += 1;
            self.differing.extend(look.named(table, &candidate.key));
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
    use super::{
        super::table::{ColumnPair, Rendering},
        *,
    };

    fn row(key: i64, hash: i64) -> HashedRow {
        HashedRow { key_hash: key, row_hash: hash, key: vec![key.to_string()], ..HashedRow::default() }
    }

    /// What a look that asks for columns finds; a row's hash is that of its only other column.
    fn seen(looks: &[(i64, Side, i64)]) -> HashMap<i64, Look> {
        let mut seen: HashMap<i64, Look> = HashMap::new();
        for (key, side, hash) in looks {
            let columns = RowColumns { hashes: vec![*key, *hash], ..RowColumns::default() };
            seen.entry(*key).or_default().see(*side, HashedRow { columns, ..row(*key, *hash) });
        }
        seen
    }

    fn table() -> TablePair {
        TablePair {
            schema: "public".into(),
            name: "t".into(),
            target: "t".into(),
            key: vec!["id".into()],
            log: None,
            columns: ["id", "v"].map(|name| ColumnPair::new(name, Rendering::Integer)).into(),
            filter: None,
        }
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
        candidates.settle(look.clone(), &table());
        assert_eq!(candidates.open_count(), 3);
        candidates.settle(look.clone(), &table());
        let outcome = candidates.finish();
        let named = |d: &KeyDifference| (d.key.clone(), d.difference, d.columns.concat());
        let expected = |key: &str, difference, columns: &str| (key.to_owned(), difference, columns.to_owned());
        assert_eq!(
            outcome.differing.iter().map(named).collect::<Vec<_>>(),
            [
                expected("id=1", Difference::Missing, ""),
                expected("id=2", Difference::Extra, ""),
                expected("id=3", Difference::Different, "v"),
            ]
        );
        assert_eq!((outcome.differing_total, outcome.still_changing), (3, 0));
    }

    #[test]
    fn a_key_that_a_writer_keeps_touching_is_still_changing() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        for hash in 11..20 {
            candidates.settle(seen(&[(1, Side::Postgres, hash), (1, Side::ClickHouse, hash - 1)]), &table());
        }
        let outcome = candidates.finish();
        assert_eq!((outcome.differing_total, outcome.still_changing), (0, 1));
    }

    #[test]
    fn a_row_that_goes_back_and_forth_is_still_changing() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        for mark in 0..9 {
            let mut look = Look::default();
            look.see(Side::Postgres, HashedRow { mark, ..row(1, 10) });
            look.see(Side::ClickHouse, row(1, 11));
            candidates.settle(HashMap::from([(1, look)]), &table());
        }
        assert_eq!((candidates.differing_total, candidates.open_count()), (0, 1));
    }

    #[test]
    fn columns_are_asked_for_when_a_key_may_be_named_and_never_of_more_keys() {
        let mut candidates = Candidates::new(10, 2);
        for key in 0..4 {
            candidates.suspect(Side::Postgres, row(key, 1));
        }
        let asked = |candidates: &Candidates| candidates.open().map(|(_, _, named)| named).collect::<Vec<_>>();
        assert_eq!(asked(&candidates), [false; 4]);
        candidates.settle(seen(&[0, 1, 2, 3].map(|key| (key, Side::Postgres, 1))), &table());
        assert_eq!(asked(&candidates), [true, true, false, false]);
        candidates.settle(seen(&[(0, Side::Postgres, 1), (1, Side::Postgres, 2), (2, Side::Postgres, 2)]), &table());
        assert_eq!((candidates.differing.len(), asked(&candidates)), (1, vec![false, false]));
    }

    #[test]
    fn a_key_that_agrees_or_is_gone_is_forgotten() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::Postgres, row(1, 10));
        candidates.suspect(Side::ClickHouse, row(2, 10));
        candidates.settle(seen(&[(1, Side::Postgres, 12), (1, Side::ClickHouse, 12)]), &table());
        assert_eq!(candidates.open_count(), 0);
    }

    #[test]
    fn two_rows_under_one_key_are_a_difference() {
        let mut candidates = Candidates::new(10, 10);
        candidates.suspect(Side::ClickHouse, row(1, 10));
        let look = seen(&[(1, Side::Postgres, 10), (1, Side::ClickHouse, 10), (1, Side::ClickHouse, 10)]);
        for _ in 0..3 {
            candidates.settle(look.clone(), &table());
        }
        assert_eq!(candidates.finish().differing[0].difference, Difference::Doubled);
    }

    #[test]
    fn keys_beyond_the_limit_are_counted_and_not_kept() {
        let mut candidates = Candidates::new(2, 1);
        for key in 0..5 {
            candidates.suspect(Side::Postgres, row(key, 1));
        }
        for _ in 1..STEADY {
            let mut look = HashMap::new();
            for (key, _, named) in candidates.open() {
                let hashes = if named { vec![key, 1] } else { Vec::new() };
                let columns = RowColumns { hashes, ..RowColumns::default() };
                look.entry(key).or_insert_with(Look::default).see(Side::Postgres, HashedRow { columns, ..row(key, 1) });
            }
            candidates.settle(look, &table());
        }
        let outcome = candidates.finish();
        assert_eq!((outcome.differing.len(), outcome.differing_total, outcome.unexamined), (1, 2, 3));
    }
}
