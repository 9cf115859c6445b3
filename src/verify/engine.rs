//! The course of one comparison: sums, then the rows of buckets that differ, then the keys that stay
//! different. Every look has a snapshot and a fence of its own, and no look keeps a transaction open
//! longer than its reading takes.

use std::{
    cmp::Ordering,
    collections::HashMap,
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt, future::try_join};

use super::{
    clickhouse::Target,
    compare::{Buckets, Candidates, Look, Side, differing_buckets},
    error::{CheckpointError, Error},
    postgres::Snapshot,
    report::TableReport,
    sql::{ClickHouseSql, Detail, PostgresSql, Rows},
    table::{ColumnPair, TablePair},
};
use crate::event::Lsn;

/// Keys in one lookup.
const KEYS_PER_LOOKUP: usize = 1000;
/// Bytes of keys in one lookup.
const BYTES_PER_LOOKUP: usize = 1 << 20;
/// Keys in one lookup that brings their columns too.
const NAMED_PER_LOOKUP: usize = 100;
/// Hashes in one lookup, which reads the whole table.
const HASHES_PER_LOOKUP: usize = 10_000;
/// Between two lines of progress about one thing.
const STILL_AT_IT: Duration = Duration::from_secs(10);
/// Between two looks at the checkpoint.
const POLL: Duration = Duration::from_millis(100);

/// How far ClickHouse is: every change that commits below the position is there.
pub trait Checkpoint: Sync {
    /// The position now. It must reach any position of the source's log in a while, also when
    /// nothing is written.
    fn position(&self) -> impl Future<Output = Result<Lsn, CheckpointError>> + Send;
}

impl<F, Fut> Checkpoint for F
where
    F: Fn() -> Fut + Sync,
    Fut: Future<Output = Result<Lsn, CheckpointError>> + Send,
{
    fn position(&self) -> impl Future<Output = Result<Lsn, CheckpointError>> + Send {
        self()
    }
}

/// The limits of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sums per table, rounded up to a power of two of at most 65,536.
    pub buckets: u32,
    /// How long ClickHouse may take to reach a fence.
    pub fence_timeout: Duration,
    /// Looks at keys that differ, the first included.
    pub max_rounds: u32,
    /// Between two looks.
    pub pause: Duration,
    /// Keys that are followed per table.
    pub max_candidates: usize,
    /// Keys that are named per table, with the columns that differ.
    pub max_named: usize,
    /// Whether the report also has the beginning of each value that differs.
    pub show_values: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            buckets: 4096,
            fence_timeout: Duration::from_secs(60),
            max_rounds: 10,
            pause: Duration::from_millis(500),
            max_candidates: 50_000,
            max_named: 100,
            show_values: false,
        }
    }
}

/// Compares tables, one after the other, over one connection to each side.
pub struct Verifier<'a, C> {
    /// The source. No transaction may be open in it.
    pub postgres: &'a mut tokio_postgres::Client,
    /// The target, with its database set.
    pub clickhouse: &'a clickhouse::Client,
    /// How far the target is.
    pub checkpoint: &'a C,
    /// Limits.
    pub options: Options,
    /// Takes a line about what is being done.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

/// How rows are found again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookup {
    /// By the key's values, which an index finds.
    Keys,
    /// By the key's hash: the whole table is read.
    Hashes,
}

impl<C: Checkpoint> Verifier<'_, C> {
    /// Compares one table.
    pub async fn verify(&mut self, table: &TablePair) -> Result<TableReport, Error> {
        let started = Instant::now();
        let key = table.key_columns().ok_or_else(|| Error::NoKey { table: table.label() })?;
        let progress = Progress { tell: self.progress, table };
        let sums = self.sums(table, &key);
        let (postgres, clickhouse) = progress.during("comparing counts and checksums", sums).await?;
        let buckets = differing_buckets(&postgres, &clickhouse);
        let mut candidates = Candidates::new(self.options.max_candidates, self.options.max_named);
        let mut rounds = 1;
        if !buckets.is_empty() {
            let all = self.bucket_count();
            let what = format!("{} of {all} buckets differ; comparing their rows", buckets.len());
            progress.during(&what, self.suspect(table, &key, &buckets, &mut candidates)).await?;
            rounds = self.settle(table, &key, &mut candidates).await?;
        }
        let outcome = candidates.finish();
        let rows = |buckets: &Buckets| buckets.values().map(|bucket| bucket.rows).sum();
        Ok(TableReport {
            table: table.label(),
            rows_postgres: rows(&postgres),
            rows_clickhouse: rows(&clickhouse),
            checksum_equal: buckets.is_empty(),
            differing: outcome.differing,
            differing_total: outcome.differing_total,
            still_changing: outcome.still_changing,
            unexamined: outcome.unexamined,
            presence_only: table.presence_only(),
            rounds,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// The sums of both sides. PostgreSQL's scan runs while the fence is waited for: the less time
    /// lies between the snapshot and ClickHouse's, the less has changed meanwhile.
    async fn sums(&mut self, table: &TablePair, key: &[&ColumnPair]) -> Result<(Buckets, Buckets), Error> {
        let buckets = self.bucket_count();
        let (checkpoint, timeout) = (self.checkpoint, self.options.fence_timeout);
        let target = Target::new(self.clickhouse, table);
        let snapshot = Snapshot::open(self.postgres, table).await?;
        let source_sql = PostgresSql::new(table, key, snapshot.source).sums(buckets);
        let target_sql = ClickHouseSql::new(table, key).sums(buckets);
        let sums = try_join(snapshot.sums(&source_sql), async {
            reach(checkpoint, snapshot.fence, timeout).await?;
            target.sums(&target_sql).await
        })
        .await?;
        snapshot.close().await?;
        Ok(sums)
    }

    /// Merges the rows of the buckets from both sides; what is not on both alike is suspect.
    async fn suspect(
        &mut self,
        table: &TablePair,
        key: &[&ColumnPair],
        buckets: &[i64],
        candidates: &mut Candidates,
    ) -> Result<(), Error> {
        let wanted = Rows::Buckets { of: self.bucket_count(), wanted: buckets };
        let target = Target::new(self.clickhouse, table);
        let snapshot = Snapshot::open(self.postgres, table).await?;
        reach(self.checkpoint, snapshot.fence, self.options.fence_timeout).await?;
        {
            let mut ours = target.rows(&ClickHouseSql::new(table, key).rows(&wanted, Detail::Row))?;
            let theirs =
                snapshot.rows(&PostgresSql::new(table, key, snapshot.source).rows(&wanted, Detail::Row)).await?;
            let mut theirs = pin!(theirs);
            let (mut source, mut found) = try_join(theirs.try_next(), ours.next()).await?;
            loop {
                let order = match (&source, &found) {
                    (None, None) => break,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some(source), Some(found)) => source.key_hash.cmp(&found.key_hash),
                };
                let same = matches!((&source, &found), (Some(s), Some(f)) if s.row_hash == f.row_hash);
                let differs = order.is_ne() || !same;
                if order.is_le() {
                    if let Some(row) = source.take().filter(|_| differs) {
                        candidates.suspect(Side::Postgres, row);
                    }
                    source = theirs.try_next().await?;
                }
                if order.is_ge() {
                    if let Some(row) = found.take().filter(|_| differs) {
                        candidates.suspect(Side::ClickHouse, row);
                    }
                    found = ours.next().await?;
                }
            }
        }
        snapshot.close().await
    }

    /// Looks at the suspects until none is open, or the rounds are used up. Returns the rounds.
    async fn settle(
        &mut self,
        table: &TablePair,
        key: &[&ColumnPair],
        candidates: &mut Candidates,
    ) -> Result<u32, Error> {
        // 0 and -0 are one key and two values, so floats can not be looked up by their text.
        let floats = key.iter().any(|column| column.kind.is_float());
        let by_hash = floats || table.log.is_some();
        let mut lookup = if by_hash { Lookup::Hashes } else { Lookup::Keys };
        let mut round = 1;
        while candidates.open_count() > 0 && round < self.options.max_rounds {
            tokio::time::sleep(self.options.pause).await;
            round += 1;
            let what = format!("looking again at {} keys (round {round})", candidates.open_count());
            let progress = Progress { tell: self.progress, table };
            let seen = match progress.during(&what, self.look(table, key, candidates, lookup)).await {
                // A key's text may be no literal of its type: of an extension's, out of an enum's
                // labels, of another range. Its hash always works.
                Err(error @ (Error::Postgres { .. } | Error::ClickHouse { .. })) if lookup == Lookup::Keys => {
                    tracing::debug!(%error, "looking keys up by hash instead");
                    lookup = Lookup::Hashes;
                    let what = format!("{what}, which reads the whole table");
                    progress.during(&what, self.look(table, key, candidates, lookup)).await?
                }
                seen => seen?,
            };
            candidates.settle(seen, table);
        }
        Ok(round)
    }

    /// What both sides have under the open keys now, under one snapshot and fence.
    async fn look(
        &mut self,
        table: &TablePair,
        key: &[&ColumnPair],
        candidates: &Candidates,
        lookup: Lookup,
    ) -> Result<HashMap<i64, Look>, Error> {
        let target = Target::new(self.clickhouse, table);
        let snapshot = Snapshot::open(self.postgres, table).await?;
        reach(self.checkpoint, snapshot.fence, self.options.fence_timeout).await?;
        let source_sql = PostgresSql::new(table, key, snapshot.source);
        let target_sql = ClickHouseSql::new(table, key);
        let mut seen: HashMap<i64, Look> = HashMap::new();
        let columns = if self.options.show_values { Detail::Values } else { Detail::Columns };
        for Batch { keys, named } in lookups(candidates, lookup) {
            let (wanted, detail) = (keys.rows(), if named { columns } else { Detail::Row });
            let (source_sql, target_sql) = (source_sql.rows(&wanted, detail), target_sql.rows(&wanted, detail));
            let source = async { snapshot.rows(&source_sql).await?.try_collect::<Vec<_>>().await };
            let found = async {
                let (mut rows, mut found) = (target.rows(&target_sql)?, Vec::new());
                while let Some(row) = rows.next().await? {
                    found.push(row);
                }
                Ok(found)
            };
            let (source, found) = try_join(source, found).await?;
            for (side, rows) in [(Side::Postgres, source), (Side::ClickHouse, found)] {
                for row in rows {
                    seen.entry(row.key_hash).or_default().see(side, row);
                }
            }
        }
        snapshot.close().await?;
        Ok(seen)
    }

    fn bucket_count(&self) -> u32 {
        self.options.buckets.clamp(1, 1 << 16).next_power_of_two()
    }
}

/// Says what is being done with a table.
struct Progress<'a> {
    tell: &'a (dyn Fn(&str) + Send + Sync),
    table: &'a TablePair,
}

impl Progress<'_> {
    /// Says it at once, and again every now and then until it is done.
    async fn during<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let (label, started, mut work) = (self.table.label(), Instant::now(), pin!(work));
        (self.tell)(&format!("{label}: {what}"));
        loop {
            match tokio::time::timeout(STILL_AT_IT, work.as_mut()).await {
                Ok(done) => return done,
                Err(_elapsed) => (self.tell)(&format!("{label}: {what}, for {} s", started.elapsed().as_secs())),
            }
        }
    }
}

/// One lookup.
struct Batch<'a> {
    keys: Keys<'a>,
    /// Whether the columns of these keys are asked for.
    named: bool,
}

/// The keys of one lookup.
enum Keys<'a> {
    Texts(Vec<&'a [String]>),
    Hashes(Vec<i64>),
}

impl Keys<'_> {
    fn rows(&self) -> Rows<'_> {
        match self {
            Self::Texts(keys) => Rows::Keys(keys),
            Self::Hashes(hashes) => Rows::KeyHashes(hashes),
        }
    }
}

/// The open keys in lookups of bounded size.
fn lookups(candidates: &Candidates, lookup: Lookup) -> Vec<Batch<'_>> {
    let mut batches = Vec::new();
    for named in [true, false] {
        let (most_keys, most_hashes) =
            if named { (NAMED_PER_LOOKUP, NAMED_PER_LOOKUP) } else { (KEYS_PER_LOOKUP, HASHES_PER_LOOKUP) };
        let (mut hashes, mut keys, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (hash, key, _) in candidates.open().filter(|open| open.2 == named) {
            // The replacement stands for bytes that are no UTF-8: such a text finds nothing.
            if lookup == Lookup::Hashes || key.iter().any(|part| part.contains('\u{fffd}')) {
                hashes.push(hash);
                continue;
            }
            keys.push(key);
            bytes += key.iter().map(String::len).sum::<usize>();
            if keys.len() >= most_keys || bytes >= BYTES_PER_LOOKUP {
                batches.push(Batch { keys: Keys::Texts(std::mem::take(&mut keys)), named });
                bytes = 0;
            }
        }
        if !keys.is_empty() {
            batches.push(Batch { keys: Keys::Texts(keys), named });
        }
        batches.extend(hashes.chunks(most_hashes).map(|chunk| Batch { keys: Keys::Hashes(chunk.to_vec()), named }));
    }
    batches
}

/// Waits until everything below the fence has arrived.
async fn reach(checkpoint: &impl Checkpoint, fence: Lsn, timeout: Duration) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let at = checkpoint.position().await.map_err(Error::Checkpoint)?;
        if at >= fence {
            return Ok(());
        }
        let waited = started.elapsed();
        if waited >= timeout {
            return Err(Error::Behind { at, needs: fence, waited });
        }
        tokio::time::sleep(POLL).await;
    }
}
