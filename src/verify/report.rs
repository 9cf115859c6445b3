//! What was found, for machines (serde) and for people.

use std::{borrow::Cow, fmt::Write as _};

use serde::Serialize;

use super::{sql::SHOWN_CHARS, table::TablePair};

/// A key longer than this is cut where people read it.
const KEY_CHARS: usize = 200;
/// More names are counted where people read them.
const COLUMNS: usize = 20;

/// What the comparison of one table found.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// `schema.name` in the source.
    pub table: String,
    /// Rows in PostgreSQL's snapshot.
    pub rows_postgres: u64,
    /// Live rows in ClickHouse, read after the snapshot's fence: writers may have gone on meanwhile.
    pub rows_clickhouse: u64,
    /// Whether counts and checksums were equal at first sight.
    pub checksum_equal: bool,
    /// The first keys that differ and stayed so.
    pub differing: Vec<KeyDifference>,
    /// How many keys differ and stayed so.
    pub differing_total: u64,
    /// Keys that differed at each look, but changed between the looks.
    pub still_changing: u64,
    /// Rows that differed at first sight, beyond the number that is followed.
    pub unexamined: u64,
    /// Columns of which only NULLs were compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub presence_only: Vec<String>,
    /// Looks at the rows that differed; 1 when there were none.
    pub rounds: u32,
    /// How long it took.
    pub seconds: f64,
}

impl TableReport {
    /// Whether every row is the same on both sides.
    pub fn is_equal(&self) -> bool {
        self.differing_total == 0 && self.still_changing == 0 && self.unexamined == 0
    }

    fn outcome(&self) -> String {
        let mut parts = Vec::new();
        for (count, singular, plural) in [
            (self.differing_total, "key differs", "keys differ"),
            (self.still_changing, "key still changing", "keys still changing"),
            (self.unexamined, "more row differed at first sight", "more rows differed at first sight"),
        ] {
            match count {
                0 => {}
                1 => parts.push(format!("1 {singular}")),
                _ => parts.push(format!("{count} {plural}")),
            }
        }
        let mut outcome = match (parts.is_empty(), self.checksum_equal) {
            (true, true) => "equal".to_owned(),
            (true, false) => format!("equal, after {} looks at what was changing", self.rounds),
            (false, _) => parts.join(", "),
        };
        if !self.presence_only.is_empty() {
            outcome +=
                &format!("; not compared but for NULL, since JSON keeps no text: {}", self.presence_only.join(", "));
        }
        outcome
    }
}

/// A key under which the two sides differ. No other value leaves the servers unless it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    /// `id=42`, or `merchant_account_id=7, id=42`.
    pub key: String,
    /// In which way.
    pub difference: Difference,
    /// The columns that differ, where each side has one row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Their values, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueDifference>,
    /// What the newest dead letter of this key says, for the caller to fill in: a column and a reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<String>,
    /// The key as PostgreSQL prints it, a part per column; empty where PostgreSQL has no such row.
    #[serde(skip)]
    pub source_key: Vec<String>,
}

impl KeyDifference {
    pub(super) fn new(names: &[String], key: &[String], difference: Difference, source_key: Vec<String>) -> Self {
        let parts: Vec<_> = names.iter().zip(key).map(|(name, part)| format!("{name}={part}")).collect();
        let (columns, values) = (Vec::new(), Vec::new());
        Self { key: parts.join(", "), difference, columns, values, dead_letter: None, source_key }
    }

    /// A row of a table without a key, which is there so many times on each side. It is named by its
    /// hash, or by the beginning of its values if those were asked for.
    pub(super) fn of_row(
        table: &TablePair,
        hash: &[String],
        values: Vec<Option<String>>,
        difference: Difference,
        counts: [i64; 2],
    ) -> Self {
        let hash = format!("row {}", hash.concat());
        let values: Vec<String> = table
            .columns
            .iter()
            .zip(values)
            .map(|(column, value)| format!("{}={}", column.name, value.as_deref().map_or("NULL", cut)))
            .collect();
        let key = if values.is_empty() { hash } else { format!("{hash} ({})", values.join(", ")) };
        let [postgres, clickhouse] = counts.map(|count| Some(count.to_string()));
        let values = vec![ValueDifference { column: "rows".to_owned(), postgres, clickhouse }];
        Self { key, difference, columns: Vec::new(), values, dead_letter: None, source_key: Vec::new() }
    }

    fn phrase(&self) -> String {
        let mut phrase = self.difference.phrase().to_owned();
        for (i, column) in self.columns.iter().take(COLUMNS).enumerate() {
            phrase += if i == 0 { ": " } else { ", " };
            phrase += &shown(column);
        }
        if self.columns.len() > COLUMNS {
            phrase += &format!(" and {} more columns", self.columns.len() - COLUMNS);
        }
        if let Some(letter) = &self.dead_letter {
            phrase += &format!("; has a dead letter: {}", shown(letter));
        }
        phrase
    }
}

/// What the two sides have in a column, as text; `None` is NULL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ValueDifference {
    /// The column.
    pub column: String,
    /// The source's value: a mask in a masked column, a digest of many bytes.
    pub postgres: Option<String>,
    /// The target's value, likewise.
    pub clickhouse: Option<String>,
}

impl ValueDifference {
    pub(super) fn new(column: &str, (postgres, clickhouse): (Option<String>, Option<String>)) -> Self {
        let cut = |text: String| match text.char_indices().nth(SHOWN_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        Self { column: column.to_owned(), postgres: postgres.map(cut), clickhouse: clickhouse.map(cut) }
    }

    fn phrase(&self) -> String {
        let quoted =
            |text: &Option<String>| text.as_ref().map_or_else(|| "NULL".to_owned(), |text| format!("{text:?}"));
        let (postgres, clickhouse) = (quoted(&self.postgres), quoted(&self.clickhouse));
        let later = if postgres == clickhouse { "; they differ further on" } else { "" };
        format!("{}: {postgres} in PostgreSQL, {clickhouse} in ClickHouse{later}", shown(&self.column))
    }
}

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// PostgreSQL has it, ClickHouse has not.
    Missing,
    /// ClickHouse has it, PostgreSQL has not.
    Extra,
    /// Both have it, not with the same values.
    Different,
    /// Both have it, and one more than once.
    Doubled,
}

impl Difference {
    fn phrase(self) -> &'static str {
        match self {
            Self::Missing => "missing in ClickHouse",
            Self::Extra => "extra in ClickHouse",
            Self::Different => "different",
            Self::Doubled => "more than one row",
        }
    }
}

/// The reports as a table, with the keys that differ below each.
pub fn render(reports: &[TableReport]) -> String {
    let header = [" ", "table", "PostgreSQL", "ClickHouse", "seconds", "outcome"].map(str::to_owned);
    let rows: Vec<[String; 6]> = reports
        .iter()
        .map(|report| {
            [
                if report.is_equal() { "✓" } else { "✗" }.to_owned(),
                shown(&report.table).into_owned(),
                report.rows_postgres.to_string(),
                report.rows_clickhouse.to_string(),
                format!("{:.1}", report.seconds),
                report.outcome(),
            ]
        })
        .collect();
    let width = |i: usize| std::iter::once(&header).chain(&rows).map(|row| row[i].chars().count()).max().unwrap_or(0);
    let [mark, table, postgres, clickhouse, seconds] = [0, 1, 2, 3, 4].map(width);
    let mut text = String::new();
    for (i, row) in std::iter::once(&header).chain(&rows).enumerate() {
        let [m, t, p, c, s, outcome] = row;
        // Writing to a String does not fail.
        let _ = writeln!(text, "{m:mark$}  {t:table$}  {p:>postgres$}  {c:>clickhouse$}  {s:>seconds$}  {outcome}");
        if let Some(report) = i.checked_sub(1).and_then(|i| reports.get(i)) {
            render_keys(&mut text, report);
        }
    }
    text
}

fn render_keys(text: &mut String, report: &TableReport) {
    for found in &report.differing {
        let _ = writeln!(text, "     {}: {}", shown(&found.key), found.phrase());
        for value in &found.values {
            let _ = writeln!(text, "         {}", value.phrase());
        }
    }
    let rest = report.differing_total - report.differing_total.min(report.differing.len() as u64);
    if rest > 0 {
        let _ = writeln!(text, "     and {rest} more");
    }
}

/// The first characters of a value.
fn cut(text: &str) -> &str {
    text.char_indices().nth(SHOWN_CHARS).map_or(text, |(end, _)| &text[..end])
}

/// A terminal is no place for what a key may hold.
fn shown(text: &str) -> Cow<'_, str> {
    if text.chars().count() <= KEY_CHARS && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut short: String = text.chars().take(KEY_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(KEY_CHARS).is_some() {
        short.push('…');
    }
    Cow::Owned(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(table: &str) -> TableReport {
        TableReport {
            table: table.into(),
            rows_postgres: 1200,
            rows_clickhouse: 1200,
            checksum_equal: true,
            differing: Vec::new(),
            differing_total: 0,
            still_changing: 0,
            unexamined: 0,
            presence_only: Vec::new(),
            rounds: 1,
            seconds: 0.25,
        }
    }

    #[test]
    fn the_table_is_aligned_and_names_the_keys() {
        let names = ["merchant".to_owned(), "id".to_owned()];
        let row = |id: &str, difference| KeyDifference::new(&names, &["7".into(), id.into()], difference, Vec::new());
        let missing = KeyDifference { dead_letter: Some("column at: no".into()), ..row("a\nb", Difference::Missing) };
        let columns: Vec<_> = (1..=22).map(|i| format!("c{i}")).collect();
        let value = |postgres, clickhouse| ValueDifference::new("c\n", (postgres, clickhouse));
        let values = vec![value(None, Some("\"\n".into())), value(Some("é".repeat(201)), Some("é".repeat(300)))];
        let changed = KeyDifference { columns, values, ..row("c", Difference::Different) };
        let different = TableReport {
            rows_clickhouse: 7,
            checksum_equal: false,
            differing: vec![missing, changed],
            differing_total: 4,
            still_changing: 1,
            ..report("public.sales_order")
        };
        assert!(!different.is_equal());
        let long = "é".repeat(SHOWN_CHARS);
        assert_eq!(
            render(&[report("public.ünïcode"), different]),
            format!(
                "   table               PostgreSQL  ClickHouse  seconds  outcome\n\
             ✓  public.ünïcode            1200        1200      0.2  equal\n\
             ✗  public.sales_order        1200           7      0.2  4 keys differ, 1 key still changing\n     \
             merchant=7, id=a\u{fffd}b: missing in ClickHouse; has a dead letter: column at: no\n     \
             merchant=7, id=c: different: c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, \
             c18, c19, c20 and 2 more columns\n         \
             c\u{fffd}: NULL in PostgreSQL, \"\\\"\\n\" in ClickHouse\n         \
             c\u{fffd}: \"{long}…\" in PostgreSQL, \"{long}…\" in ClickHouse; they differ further on\n     \
             and 2 more\n"
            )
        );
    }

    #[test]
    fn a_long_key_is_cut() {
        assert_eq!(shown(&"é".repeat(300)).chars().count(), KEY_CHARS + 1);
    }

    #[test]
    fn a_machine_reads_keys_and_no_other_values() {
        let found =
            |difference| KeyDifference::new(&["id".to_owned()], &["42".to_owned()], difference, vec!["0".into()]);
        let json = |found: &KeyDifference| serde_json::to_string(found).unwrap();
        assert_eq!(json(&found(Difference::Extra)), r#"{"key":"id=42","difference":"extra"}"#);
        let different = KeyDifference { columns: vec!["v".into()], ..found(Difference::Different) };
        assert_eq!(json(&different), r#"{"key":"id=42","difference":"different","columns":["v"]}"#);
        let values = vec![ValueDifference::new("v", (None, Some(String::new())))];
        assert!(
            json(&KeyDifference { values, ..different })
                .ends_with(r#""values":[{"column":"v","postgres":null,"clickhouse":""}]}"#)
        );
    }
}
