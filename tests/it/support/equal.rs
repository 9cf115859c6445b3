//! The oracle: is every row of PostgreSQL in ClickHouse, and nothing else?
//!
//! Both sides render each value as text in one canonical way, in SQL, so nothing of walhouse is trusted: neither its
//! parsers nor its versions beyond what `FINAL` makes of them. Floats are compared by their bits, bytes in hex, times in
//! UTC with microseconds; a NULL is not an empty string. The writers must be quiet while it looks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::database::TestDb;
use super::postgres::TextRow;

/// Waits until both sides of a table are equal, at most 30 s. `table` is `name` or `schema.name`.
pub(crate) async fn assert_equal(db: &TestDb, table: &str) {
    assert_equal_within(db, table, Duration::from_secs(30)).await;
}

/// As `assert_equal`, with a deadline of one's own.
pub(crate) async fn assert_equal_within(db: &TestDb, table: &str, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    loop {
        let began = Instant::now();
        let Some(found) = difference(db, table).await else { return };
        assert!(Instant::now() < deadline, "{table} differs after {timeout:?}: {found}");
        // Large tables take their time to compare; leave the servers at least as much for their work.
        tokio::time::sleep(began.elapsed().max(Duration::from_millis(50))).await;
    }
}

/// What differs now, in counts and in the first keys, or nothing.
pub(crate) async fn difference(db: &TestDb, table: &str) -> Option<String> {
    let source = Source::describe(db, table).await;
    let expected = source.postgres_rows(db).await;
    match source.clickhouse_rows(db).await {
        Ok(actual) => source.compare(expected, actual),
        Err(error) => Some(format!("PostgreSQL has {} rows; ClickHouse: {error}", expected.len())),
    }
}

/// A table as PostgreSQL's catalog describes it.
struct Source {
    table: String,
    target: String,
    columns: Vec<Column>,
    /// How many of the columns, which come first, make the key.
    key: usize,
}

struct Column {
    name: String,
    kind: Kind,
}

/// How a column's values become canonical text.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    /// `::text` would take off a char(n)'s padding, and give an inet a mask.
    Padded,
    Bytes,
    Time,
    TimeWithZone,
    Float4,
    Float8,
}

impl Source {
    async fn describe(db: &TestDb, table: &str) -> Self {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        let relation = format!("{}.{}", quoted(schema, '"'), quoted(name, '"'));
        let literal = relation.replace('\'', "''");
        let sql = format!(
            "SELECT a.attname, coalesce(b.typname, t.typname), coalesce(array_position(k.indkey::int2[], a.attnum), -1)
             FROM pg_attribute a
             JOIN pg_type t ON t.oid = a.atttypid
             LEFT JOIN pg_type b ON b.oid = t.typbasetype
             LEFT JOIN LATERAL (
                 SELECT indkey FROM pg_index WHERE indrelid = a.attrelid AND (indisreplident OR indisprimary)
                 ORDER BY indisreplident DESC LIMIT 1) k ON true
             WHERE a.attrelid = '{literal}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             ORDER BY array_position(k.indkey::int2[], a.attnum) NULLS LAST, a.attnum"
        );
        let rows: Vec<Vec<String>> =
            db.pg.query(&sql).await.into_iter().map(|row| row.into_iter().flatten().collect()).collect();
        let mut source = Self {
            table: relation,
            target: if schema == "public" { name.to_owned() } else { format!("{schema}_{name}") },
            columns: Vec::new(),
            key: 0,
        };
        for row in rows {
            let [name, kind, position] = row.as_slice() else { panic!("three columns were selected") };
            source.key += usize::from(position != "-1");
            source.columns.push(Column { name: name.clone(), kind: Kind::of(kind) });
        }
        assert!(!source.columns.is_empty(), "{table} has no columns");
        if source.key == 0 {
            source.key = source.columns.len();
        }
        source
    }

    async fn postgres_rows(&self, db: &TestDb) -> Vec<TextRow> {
        let values: Vec<_> = self.columns.iter().map(Column::in_postgres).collect();
        let sql = format!("SELECT {} FROM {}", values.join(", "), self.table);
        let pin =
            "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1";
        db.pg.execute(pin).await;
        self.canonical(db.pg.query(&sql).await)
    }

    async fn clickhouse_rows(&self, db: &TestDb) -> Result<Vec<TextRow>, String> {
        let values: Vec<_> = self.columns.iter().map(Column::in_clickhouse).collect();
        let target = quoted(&self.target, '`');
        let sql = format!("SELECT {} FROM {target} FINAL WHERE _is_deleted = 0", values.join(", "));
        let text = db.ch.try_query(&sql).await?;
        let lines = if text.is_empty() { Vec::new() } else { text.split('\n').collect() };
        Ok(self.canonical(lines.into_iter().map(|line| line.split('\t').map(unescaped).collect()).collect()))
    }

    /// Floats to their bits, which needs no trust in either side's way to print them.
    fn canonical(&self, mut rows: Vec<TextRow>) -> Vec<TextRow> {
        for (at, column) in self.columns.iter().enumerate() {
            if !matches!(column.kind, Kind::Float4 | Kind::Float8) {
                continue;
            }
            for value in rows.iter_mut().filter_map(|row| row.get_mut(at)?.as_mut()) {
                let bits = match column.kind {
                    Kind::Float4 => value.parse::<f32>().map(|float| format!("{:08x}", normal_nan32(float).to_bits())),
                    _ => value.parse::<f64>().map(|float| format!("{:016x}", normal_nan64(float).to_bits())),
                };
                *value = bits.unwrap_or_else(|_| format!("not a float: {value}"));
            }
        }
        rows.sort_unstable();
        rows
    }

    fn compare(&self, expected: Vec<TextRow>, actual: Vec<TextRow>) -> Option<String> {
        if expected == actual {
            return None;
        }
        let mut found = format!("PostgreSQL has {} rows, ClickHouse {}", expected.len(), actual.len());
        let mut keys: BTreeMap<TextRow, [Vec<TextRow>; 2]> = BTreeMap::new();
        for (side, rows) in [expected, actual].into_iter().enumerate() {
            for row in rows {
                let key = row.get(..self.key).unwrap_or_default().to_vec();
                keys.entry(key).or_default()[side].push(row);
            }
        }
        let different: Vec<_> = keys.into_iter().filter(|(_, [left, right])| left != right).collect();
        found += &format!("; {} keys differ", different.len());
        for (key, sides) in different.iter().take(5) {
            found += &format!("\n  key {}: {}", shortened(key), self.explain(sides));
        }
        Some(found)
    }

    fn explain(&self, [expected, actual]: &[Vec<TextRow>; 2]) -> String {
        let ([left], [right]) = (expected.as_slice(), actual.as_slice()) else {
            return format!("{} times in PostgreSQL, {} times in ClickHouse", expected.len(), actual.len());
        };
        let columns = self.columns.iter().zip(left).zip(right).filter(|((_, left), right)| left != right);
        let columns = columns.map(|((column, left), right)| {
            let sides = [left, right].map(|value| shortened(std::slice::from_ref(value)));
            format!("{} is {} in PostgreSQL, {} in ClickHouse", column.name, sides[0], sides[1])
        });
        columns.collect::<Vec<_>>().join("; ")
    }
}

impl Kind {
    fn of(typname: &str) -> Self {
        match typname {
            "bpchar" | "inet" => Self::Padded,
            "bytea" => Self::Bytes,
            "timestamp" => Self::Time,
            "timestamptz" => Self::TimeWithZone,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            _ => Self::Text,
        }
    }
}

impl Column {
    fn in_postgres(&self) -> String {
        let name = quoted(&self.name, '"');
        let time = |value: &str| {
            let text = format!("to_char({value}, 'YYYY-MM-DD HH24:MI:SS.US')");
            format!("CASE WHEN isfinite({name}) THEN {text} ELSE {name}::text END")
        };
        match self.kind {
            Kind::Padded => format!("CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END"),
            Kind::Bytes => format!("encode({name}, 'hex')"),
            Kind::Time => time(&name),
            Kind::TimeWithZone => time(&format!("{name} AT TIME ZONE 'UTC'")),
            Kind::Text | Kind::Float4 | Kind::Float8 => format!("{name}::text"),
        }
    }

    /// As TabSeparated prints it; not `toString`, which leaves off a decimal's last zeros whatever the settings say.
    fn in_clickhouse(&self) -> String {
        let name = quoted(&self.name, '`');
        if self.kind == Kind::Bytes { format!("lower(hex({name}))") } else { name }
    }
}

/// Every NaN is the same value to PostgreSQL.
fn normal_nan32(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value }
}

fn normal_nan64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value }
}

fn quoted(name: &str, quote: char) -> String {
    let inner = if quote == '`' { name.replace('\\', "\\\\").replace('`', "\\`") } else { name.replace('"', "\"\"") };
    format!("{quote}{inner}{quote}")
}

/// One field of TabSeparated.
fn unescaped(field: &str) -> Option<String> {
    if field == "\\N" {
        return None;
    }
    let mut text = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => text.push(match characters.next() {
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some(other) => other,
                None => '\\',
            }),
            other => text.push(other),
        }
    }
    Some(text)
}

fn shortened(values: &[Option<String>]) -> String {
    let short = values.iter().map(|value| match value {
        Some(text) if text.chars().count() > 60 => {
            format!("'{}…' ({} bytes)", text.chars().take(60).collect::<String>(), text.len())
        }
        Some(text) => format!("'{text}'"),
        None => "NULL".to_owned(),
    });
    short.collect::<Vec<_>>().join(", ")
}
