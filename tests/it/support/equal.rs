//! The oracle: is every row of PostgreSQL in ClickHouse, and nothing else?
//!
//! Both sides render each value as text in one canonical way, in SQL, so nothing of walhouse is trusted: neither its
//! parsers nor its versions beyond what `FINAL` makes of them. Floats are compared by their bits, bytes in hex, times in
//! UTC with microseconds; a NULL is not an empty string, and not an empty array. Arrays are taken apart by subscript on
//! one side and as they lie on the other. What ClickHouse has as JSON is compared as a document without what that type
//! leaves out: nulls and empty objects. The writers must be quiet while it looks.

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
    compared(db, table).await.difference
}

/// Both sides of a table, in numbers of rows.
pub(crate) struct Comparison {
    /// PostgreSQL's.
    pub(crate) rows: u64,
    /// Keys that PostgreSQL alone has.
    pub(crate) lost: u64,
    /// Keys that ClickHouse alone has, or has differently.
    pub(crate) wrong: u64,
    /// In words, when there is any.
    pub(crate) difference: Option<String>,
}

/// Compares both sides as they are now.
pub(crate) async fn compared(db: &TestDb, table: &str) -> Comparison {
    let source = Source::describe(db, table).await;
    let expected = source.postgres_rows(db).await;
    let rows = expected.len() as u64;
    match source.clickhouse_rows(db).await {
        Ok(actual) => source.compare(expected, actual),
        Err(error) => {
            let difference = Some(format!("PostgreSQL has {rows} rows; ClickHouse: {error}"));
            Comparison { rows, lost: rows, wrong: 0, difference }
        }
    }
}

/// A table as PostgreSQL's catalog describes it.
struct Source {
    table: String,
    target: String,
    columns: Vec<Column>,
    /// How many of the columns, which come first, make the key.
    key: usize,
    /// Whether the target is a log of changes; its view has the rows then.
    log: bool,
}

struct Column {
    name: String,
    kind: Kind,
    /// How deep its arrays are nested in ClickHouse; 0 for what is no array there.
    rank: usize,
    /// Whether ClickHouse has a column beside it that tells a NULL array.
    null_mark: bool,
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
    /// ClickHouse's time has six digits of a second, and shows them.
    Clock,
    /// ClickHouse's JSON prints another text than it was given.
    Json,
    Vector,
    /// A single address: the mask of one says nothing.
    Address,
    Bool,
    /// As an element it has no zeros at its end.
    Decimal,
}

impl Source {
    async fn describe(db: &TestDb, table: &str) -> Self {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        let relation = format!("{}.{}", quoted(schema, '"'), quoted(name, '"'));
        let literal = relation.replace('\'', "''");
        let base = |of: &str| {
            format!(
                "(WITH RECURSIVE d AS (
                     SELECT * FROM pg_type WHERE oid = {of}
                     UNION ALL SELECT p.* FROM d JOIN pg_type p ON p.oid = d.typbasetype WHERE d.typtype = 'd')
                 SELECT d.typname::text AS name, d.typelem AS element FROM d WHERE d.typtype <> 'd')"
            )
        };
        let sql = format!(
            "SELECT a.attname, t.name, coalesce(e.name, ''), coalesce(array_position(k.indkey::int2[], a.attnum), -1)
             FROM pg_attribute a
             JOIN LATERAL {} t ON true LEFT JOIN LATERAL {} e ON true
             LEFT JOIN LATERAL (
                 SELECT indkey FROM pg_index WHERE indrelid = a.attrelid AND (indisreplident OR indisprimary)
                 ORDER BY indisreplident DESC LIMIT 1) k ON true
             WHERE a.attrelid = '{literal}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             ORDER BY array_position(k.indkey::int2[], a.attnum) NULLS LAST, a.attnum",
            base("a.atttypid"),
            base("t.element"),
        );
        let rows: Vec<Vec<String>> =
            db.pg.query(&sql).await.into_iter().map(|row| row.into_iter().flatten().collect()).collect();
        let target = if schema == "public" { name.to_owned() } else { format!("{schema}_{name}") };
        let types = target_types(db, &target).await;
        let log = types.contains_key("_op");
        let mut source = Self { table: relation, target, columns: Vec::new(), key: 0, log };
        for row in rows {
            let [name, own, element, position] = row.as_slice() else { panic!("four columns were selected") };
            source.key += usize::from(position != "-1");
            let target = types.get(name).map_or("", String::as_str);
            let rank = target.matches("Array(").count();
            source.columns.push(Column {
                kind: Kind::of(if rank > 0 && own != "vector" { element } else { own }, target),
                rank,
                null_mark: types.contains_key(&format!("{name}__is_null")),
                name: name.clone(),
            });
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
        let from = match self.log {
            false => format!("{} FINAL WHERE _is_deleted = 0", quoted(&self.target, '`')),
            true => quoted(&format!("{}_current", self.target), '`'),
        };
        let sql = format!("SELECT {} FROM {from}", values.join(", "));
        let text = db.ch.try_query(&sql).await?;
        let lines = if text.is_empty() { Vec::new() } else { text.split('\n').collect() };
        Ok(self.canonical(lines.into_iter().map(|line| line.split('\t').map(unescaped).collect()).collect()))
    }

    /// Floats to their bits, which needs no trust in either side's way to print them.
    fn canonical(&self, mut rows: Vec<TextRow>) -> Vec<TextRow> {
        for (at, column) in self.columns.iter().enumerate() {
            if !matches!(column.kind, Kind::Float4 | Kind::Float8 | Kind::Json) || column.rank > 0 {
                continue;
            }
            for value in rows.iter_mut().filter_map(|row| row.get_mut(at)?.as_mut()) {
                if column.kind == Kind::Json {
                    *value = document(value);
                    continue;
                }
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

    fn compare(&self, expected: Vec<TextRow>, actual: Vec<TextRow>) -> Comparison {
        let rows = expected.len() as u64;
        if expected == actual {
            return Comparison { rows, lost: 0, wrong: 0, difference: None };
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
        let lost = different.iter().filter(|(_, [_, actual])| actual.is_empty()).count();
        found += &format!("; {} keys differ", different.len());
        for (key, sides) in different.iter().take(5) {
            found += &format!("\n  key {}: {}", shortened(key), self.explain(sides));
        }
        let (lost, wrong) = (lost as u64, (different.len() - lost) as u64);
        Comparison { rows, lost, wrong, difference: Some(found) }
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
    /// From the base type, or that of an array's elements, and the column's type in ClickHouse.
    fn of(typname: &str, target: &str) -> Self {
        let held = |name: &str| target.contains(name);
        match typname {
            "vector" if held("Array(Float32)") => Self::Vector,
            "json" | "jsonb" if held("JSON") => Self::Json,
            "inet" if held("IPv") => Self::Address,
            "time" if held("Time64") => Self::Clock,
            "timestamp" if held("DateTime64") => Self::Time,
            "timestamptz" if held("DateTime64") => Self::TimeWithZone,
            "bpchar" | "inet" => Self::Padded,
            "bytea" => Self::Bytes,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            "bool" if held("Bool") => Self::Bool,
            "numeric" if held("Decimal") => Self::Decimal,
            _ => Self::Text,
        }
    }

    fn in_postgres(self, value: &str) -> String {
        let time = |time: &str| {
            let text = format!("to_char({time}, 'YYYY-MM-DD HH24:MI:SS.US')");
            format!("CASE WHEN isfinite({value}) THEN {text} ELSE {value}::text END")
        };
        match self {
            Self::Padded => format!("CASE WHEN {value} IS NOT NULL THEN format('%s', {value}) END"),
            Self::Bytes => format!("encode({value}, 'hex')"),
            Self::Time => time(value),
            Self::TimeWithZone => time(&format!("{value} AT TIME ZONE 'UTC'")),
            Self::Clock => format!("to_char({value}, 'HH24:MI:SS.US')"),
            Self::Address => format!("host({value})"),
            Self::Text | Self::Float4 | Self::Float8 | Self::Json | Self::Vector | Self::Bool | Self::Decimal => {
                format!("{value}::text")
            }
        }
    }

    /// As an element, where neither TabSeparated nor this test's own code makes one text of both.
    fn element_in_postgres(self, value: &str) -> String {
        let bits =
            |kind: &str| format!("CASE WHEN {value} = 'NaN' THEN 'NaN' ELSE encode({kind}send({value}), 'hex') END");
        match self {
            Self::Float4 | Self::Vector => bits("float4"),
            Self::Float8 => bits("float8"),
            Self::Decimal => format!("trim_scale({value})::text"),
            kind => kind.in_postgres(value),
        }
    }

    fn element_in_clickhouse(self, value: &str) -> String {
        let bits = |size: u8| {
            let hex =
                format!("lower(leftPad(hex(reinterpretAsUInt{size}(assumeNotNull({value}))), {}, '0'))", size / 4);
            format!("if(isNaN(assumeNotNull({value})), 'NaN', {hex})")
        };
        match self {
            Self::Bytes => format!("lower(hex(assumeNotNull({value})))"),
            Self::Float4 | Self::Vector => bits(32),
            Self::Float8 => bits(64),
            _ => format!("toString(assumeNotNull({value}))"),
        }
    }
}

impl Column {
    fn in_postgres(&self) -> String {
        let name = quoted(&self.name, '"');
        if self.rank == 0 {
            return self.kind.in_postgres(&name);
        }
        let array = match self.kind {
            Kind::Vector => format!("string_to_array(trim(both '[]' from {name}::text), ',')::float4[]"),
            _ => name.clone(),
        };
        let places: Vec<_> = (1..=self.rank).map(|level| format!("p{level}")).collect();
        let subscripts = places.iter().map(|place| format!("[{place}]")).collect::<String>();
        let from = (1..=self.rank).map(|level| format!("generate_subscripts({array}, {level}) p{level}"));
        let value = format!("({array}){subscripts}");
        format!(
            "CASE WHEN {name} IS DISTINCT FROM NULL THEN concat(array_dims({array}), (SELECT string_agg(
                 CASE WHEN {value} IS DISTINCT FROM NULL THEN 'V' || encode(convert_to({}, 'UTF8'), 'hex') ELSE 'N' END,
                 ',' ORDER BY {}) FROM {})) END",
            self.kind.element_in_postgres(&value),
            places.join(", "),
            from.collect::<Vec<_>>().join(", "),
        )
    }

    /// As TabSeparated prints it; not `toString`, which leaves off a decimal's last zeros whatever the settings say.
    fn in_clickhouse(&self) -> String {
        let name = quoted(&self.name, '`');
        if self.rank == 0 {
            return if self.kind == Kind::Bytes { format!("lower(hex({name}))") } else { name };
        }
        let level = |depth: usize| format!("{name}{}", "[1]".repeat(depth));
        let bounds: Vec<_> =
            (0..self.rank).map(|depth| format!("'[1:', toString(length({})), ']'", level(depth))).collect();
        let text = format!(
            "concat(if(empty({name}), '', concat({})), arrayStringConcat(arrayMap(e -> if(isNull(e), 'N', concat('V', lower(hex({})))), {}), ','))",
            bounds.join(", "),
            self.kind.element_in_clickhouse("e"),
            if self.rank > 1 { format!("arrayFlatten({name})") } else { name.clone() },
        );
        if !self.null_mark {
            return text;
        }
        format!("if({}, NULL, {text})", quoted(&format!("{}__is_null", self.name), '`'))
    }
}

/// The columns of a target by name, as that server has them.
async fn target_types(db: &TestDb, target: &str) -> BTreeMap<String, String> {
    let literal = target.replace('\\', "\\\\").replace('\'', "\\'");
    let sql =
        format!("SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = '{literal}'");
    let text = db.ch.try_query(&sql).await.unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once('\t'));
    fields.filter_map(|(name, ty)| Some((unescaped(name)?, unescaped(ty)?))).collect()
}

/// A JSON document in one form, without what ClickHouse leaves out.
fn document(text: &str) -> String {
    fn strip(value: serde_json::Value) -> Option<serde_json::Value> {
        match value {
            serde_json::Value::Null => None,
            serde_json::Value::Object(map) => {
                let map: serde_json::Map<_, _> =
                    map.into_iter().filter_map(|(key, value)| Some((key, strip(value)?))).collect();
                (!map.is_empty()).then_some(map.into())
            }
            serde_json::Value::Number(number) if number.is_f64() => {
                let float = number.as_f64().unwrap_or_default();
                // A whole number may lose its point.
                let whole = float.fract() == 0.0 && float.abs() < 9e15;
                Some(if whole { (float as i64).into() } else { number.into() })
            }
            other => Some(other),
        }
    }
    let value = serde_json::from_str(text).unwrap_or_else(|error| panic!("a JSON document: {error}"));
    strip(value).map_or_else(|| "{}".to_owned(), |value| value.to_string())
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
