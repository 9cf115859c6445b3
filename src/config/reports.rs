//! `[reports.name]`, `[operation]` and `[warehouse]`: what reports there are, what one may cost, and the star schema that the
//! built-in ones read.
//!
//! A report is a statement with placeholders that ClickHouse itself fills in: `{from:Date}`. One of them is not the asker's to
//! fill: `{merchant:String}`, the account that the event was written for. A report that does not mention it would show everybody's rows
//! to anybody, so there is none.

use super::{
    options::SettingValue,
    parameter::{Parameter, ParameterType},
    value::{ByteSize, Timespan, as_text, words},
    within,
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::LazyLock,
    time::Duration,
};

/// The placeholder whose value is the event's merchantAccountId.
pub const MERCHANT: &str = "merchant";
/// What else `parameters` of an event holds.
const OTHERS: [&str; 2] = ["report", "format"];

/// The reports that come with walhouse, each in the form of its own section.
const BUILT_IN: [(&str, &str); 5] = [
    ("sales_by_day_and_channel", include_str!("../../config/reports/sales_by_day_and_channel.toml")),
    ("best_customers", include_str!("../../config/reports/best_customers.toml")),
    ("product_performance", include_str!("../../config/reports/product_performance.toml")),
    ("order_funnel", include_str!("../../config/reports/order_funnel.toml")),
    ("merchant_orders", include_str!("../../config/reports/merchant_orders.toml")),
];

static REPORTS: LazyLock<BTreeMap<&str, ReportConfig>> = LazyLock::new(|| {
    let report = |(name, text)| (name, toml::from_str(text).expect("a report of ours is one, as a test sees"));
    BUILT_IN.into_iter().map(report).collect()
});

/// `[reports.name]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// What it shows.
    ///
    /// Say it in a line, for those who choose among reports.
    #[serde(default)]
    pub description: String,
    /// Whether it is an export: asked for by dataExport alone, and told to the audit log.
    ///
    /// Set it for what hands out rows rather than figures.
    #[serde(default)]
    pub export: bool,
    /// What becomes of text in CSV that a spreadsheet would take for a formula; as in `[operation]` if it is absent.
    ///
    /// Set `"escape"` where people open the file in a spreadsheet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csv_formulas: Option<CsvFormulas>,
    /// What may be asked of it, by name: a type, such as `"Date"`, or with a default `{ type = "UInt32", default = 100
    /// }`. Types are String, Bool, Date, DateTime('UTC'), UUID, Float64, Int8 to Int64, UInt8 to UInt64 and Decimal(P,
    /// S).
    ///
    /// Declare each placeholder of the statement; a parameter without a default has to be given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Parameter>,
    /// The statement. It has to compare with `{merchant:String}`, the event's merchantAccountId: what it shows is that
    /// one's alone.
    ///
    /// Read `<table>_current`, which has live rows only.
    pub sql: String,
}

/// What becomes of text in CSV that begins as a formula does in a spreadsheet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CsvFormulas {
    /// It stays as it is, as every value does.
    #[default]
    Keep,
    /// An apostrophe in front of it makes it text.
    Escape,
}

words!(CsvFormulas: "keep" => Keep, "escape" => Escape);
as_text!(CsvFormulas);

/// `[operation]`: what one report or export may cost.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperationConfig {
    /// Rows of its result.
    ///
    /// Raise it for larger exports.
    pub max_rows: u64,
    /// Bytes of its result, both in ClickHouse's memory and as an object.
    ///
    /// Raise it for larger exports; an object of S3 has an upper bound of its own.
    pub max_bytes: ByteSize,
    /// ClickHouse's memory for one.
    ///
    /// Raise it if reports fail with MEMORY_LIMIT_EXCEEDED and the server has room.
    pub max_memory: ByteSize,
    /// ClickHouse's time; four fifths of what the handler has, if it is absent or more than that.
    ///
    /// Lower it to keep one report from holding ClickHouse's cores for long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time: Option<Timespan>,
    /// What becomes of text in CSV that a spreadsheet would take for a formula: `"keep"` leaves it, `"escape"` puts an
    /// apostrophe in front.
    ///
    /// Set `"escape"` where people open files in a spreadsheet.
    pub csv_formulas: CsvFormulas,
}

/// `[warehouse]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarehouseConfig {
    /// Whether there is a star schema over the tables of the demo's shop, which the built-in reports read.
    ///
    /// Switch it on to see the built-in reports at work; a shop of your own has reports of its own.
    pub enabled: bool,
}

impl Default for OperationConfig {
    fn default() -> Self {
        Self {
            max_rows: 10_000_000,
            max_bytes: ByteSize::mib(4096),
            max_memory: ByteSize::mib(2048),
            max_time: None,
            csv_formulas: CsvFormulas::Keep,
        }
    }
}

impl OperationConfig {
    /// How long ClickHouse may take for a report whose handler has so long.
    pub fn max_time(&self, handler: Duration) -> Duration {
        let most = handler * 4 / 5;
        self.max_time.map_or(most, |time| time.0.min(most))
    }

    pub(super) fn check(&self) -> Result<(), (Cow<'static, str>, String)> {
        let at = |key: &'static str| move |message| (Cow::from(key), message);
        within(self.max_rows, 1, 1 << 40).map_err(at("operation.max_rows"))?;
        // An object of S3 has up to 10,000 parts.
        within(self.max_bytes, ByteSize(1 << 10), ByteSize::mib(40 << 10)).map_err(at("operation.max_bytes"))?;
        within(self.max_memory, ByteSize::mib(16), ByteSize::mib(1 << 20)).map_err(at("operation.max_memory"))?;
        let (shortest, longest) = (Timespan(Duration::from_millis(100)), Timespan(Duration::from_secs(6 * 3600)));
        within(self.max_time.unwrap_or(shortest), shortest, longest).map_err(at("operation.max_time"))
    }
}

/// All reports that can be asked for: the built-in ones, and over them those of the configuration.
pub fn reports(configured: &BTreeMap<String, ReportConfig>) -> BTreeMap<String, ReportConfig> {
    let built_in = REPORTS.iter().map(|(name, report)| ((*name).to_owned(), report.clone()));
    built_in.chain(configured.iter().map(|(name, report)| (name.clone(), report.clone()))).collect()
}

pub(super) fn check(configured: &BTreeMap<String, ReportConfig>) -> Result<(), (Cow<'static, str>, String)> {
    for (name, report) in configured {
        let path = |key: &str| Cow::from(format!("reports.{name}{key}"));
        if !is_name(name) {
            return Err((
                path(""),
                "its name has other characters than lower case letters, digits and underscores".to_owned(),
            ));
        }
        report.check().map_err(|(key, why)| (path(&key), why))?;
    }
    Ok(())
}

/// As ClickHouse's HTTP interface takes them, and no longer than anybody needs.
fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with(|first: char| first.is_ascii_digit())
}

impl ReportConfig {
    fn check(&self) -> Result<(), (String, String)> {
        let sql = |why: String| (".sql".to_owned(), why);
        for (name, Parameter { of, default }) in &self.parameters {
            let at = |why: String| (format!(".parameters.{name}"), why);
            if name == MERCHANT || OTHERS.contains(&name.as_str()) {
                let why = format!(
                    "the name is taken: {MERCHANT} is the event's merchantAccountId, report and format say what is asked for"
                );
                return Err(at(why));
            }
            if !is_name(name) {
                return Err(at(
                    "its name has other characters than lower case letters, digits and underscores".to_owned()
                ));
            }
            let default = default.as_ref().map(SettingValue::json);
            default
                .map_or(Ok(String::new()), |value| of.text(&value))
                .map_err(|why| at(format!("its default: {why}")))?;
        }
        let placeholders = placeholders(&self.sql).map_err(sql)?;
        if !placeholders.contains(&(MERCHANT.to_owned(), ParameterType::String.to_string())) {
            let why = "it does not mention {merchant:String}, so it would show everybody's rows to anybody: compare \
                       merchant_account_id with it";
            return Err(sql(why.to_owned()));
        }
        for (name, of) in &placeholders {
            let declared = match self.parameters.get(name) {
                Some(parameter) => parameter.of,
                None if name == MERCHANT => ParameterType::String,
                None => return Err(sql(format!("it asks for {{{name}:{of}}}, which parameters does not name"))),
            };
            if declared.to_string().replace(' ', "") != of.replace(' ', "") {
                return Err(sql(format!("it asks for {{{name}:{of}}}, which is a {declared}")));
            }
        }
        match self.parameters.keys().find(|name| !placeholders.iter().any(|(used, _)| used == *name)) {
            Some(unused) => {
                Err((format!(".parameters.{unused}"), format!("the statement does not mention {{{unused}:…}}")))
            }
            None => Ok(()),
        }
    }
}

/// The placeholders of a statement, with their types. What stands in a comment or in quotes is none.
fn placeholders(sql: &str) -> Result<BTreeSet<(String, String)>, String> {
    let (mut found, mut rest) = (BTreeSet::new(), sql);
    while let Some(first) = rest.chars().next() {
        let end = |close: &str| rest[2.min(rest.len())..].find(close).map(|at| 2 + at + close.len());
        rest = match first {
            '\'' | '"' | '`' => after_quote(rest, first).ok_or_else(|| format!("a {first} is not closed"))?,
            '-' if rest.starts_with("--") => &rest[rest.find('\n').unwrap_or(rest.len())..],
            '#' => &rest[rest.find('\n').unwrap_or(rest.len())..],
            '/' if rest.starts_with("/*") => &rest[end("*/").ok_or("a comment is not closed")?..],
            ';' => return Err("it has a semicolon; give one statement, and no semicolon behind it".to_owned()),
            '$' => return Err("it has a dollar sign, which may begin a quote; use ' for text".to_owned()),
            '{' => {
                let close = rest.find('}').ok_or("a { is not closed")?;
                let (name, of) = rest[1..close].split_once(':').ok_or("a placeholder has no type: {name:Type}")?;
                found.insert((name.trim().to_owned(), of.trim().to_owned()));
                &rest[close + 1..]
            }
            other => &rest[other.len_utf8()..],
        };
    }
    Ok(found)
}

/// What follows a quoted text, in which a backslash protects the next character, and a quote is doubled.
fn after_quote(text: &str, quote: char) -> Option<&str> {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, one)) = characters.next() {
        match one {
            '\\' => _ = characters.next(),
            // A doubled one ends here, and the next begins at once.
            _ if one == quote => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let report: ReportConfig = toml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let (key, why) = report.check().expect_err(text);
        format!("{key}: {why}")
    }

    #[test]
    fn every_built_in_report_is_scoped_and_says_what_it_shows() {
        for (name, report) in REPORTS.iter() {
            assert_eq!(report.check(), Ok(()), "{name}");
            assert!(is_name(name) && !report.description.is_empty(), "{name}");
        }
        assert!(REPORTS["merchant_orders"].export && !REPORTS["best_customers"].export);
    }

    #[test]
    fn a_report_without_its_scope_is_refused() {
        for sql in [
            "SELECT 1",
            "SELECT 1 -- {merchant:String}",
            "SELECT 1 /* {merchant:String} */",
            "SELECT 1 # {merchant:String}",
            "SELECT '{merchant:String}'",
            "SELECT 'it''s {merchant:String}'",
            "SELECT '\\\\'' {merchant:String}'",
            "SELECT `{merchant:String}`",
            "SELECT \\\"{merchant:String}\\\"",
            "SELECT {Merchant:String}",
            "SELECT {merchant:UInt32}",
        ] {
            let why = refusal(&format!("sql = \"{sql}\""));
            assert!(why.starts_with(".sql: "), "{sql}: {why}");
        }
        assert!(refusal("sql = 'SELECT 1'").contains("everybody's rows"));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let scoped = "sql = 'SELECT {merchant:String}, {n:UInt32}'\n";
        for (text, part) in [
            (scoped.to_owned(), ".sql: it asks for {n:UInt32}, which parameters does not name"),
            (format!("{scoped}parameters = {{ n = 'Int32' }}"), ".sql: it asks for {n:UInt32}, which is a Int32"),
            (format!("{scoped}parameters = {{ n = 'UInt32', m = 'Date' }}"), ".parameters.m: the statement does not"),
            (
                format!("{scoped}parameters = {{ n = {{ type = 'UInt32', default = -1 }} }}"),
                ".parameters.n: its default: it takes",
            ),
            (
                format!("{scoped}parameters = {{ n = 'UInt32', merchant = 'String' }}"),
                ".parameters.merchant: the name is taken",
            ),
            (
                format!("{scoped}parameters = {{ n = 'UInt32', format = 'String' }}"),
                ".parameters.format: the name is taken",
            ),
            (format!("{scoped}parameters = {{ n = 'UInt32', 'a-b' = 'String' }}"), ".parameters.a-b: its name"),
            ("sql = 'SELECT {merchant:String}; SELECT 1'".to_owned(), ".sql: it has a semicolon"),
            ("sql = 'SELECT {merchant:String} $$ $$'".to_owned(), ".sql: it has a dollar sign"),
            ("sql = 'SELECT {merchant:String'".to_owned(), ".sql: a { is not closed"),
        ] {
            let why = refusal(&text);
            assert!(why.starts_with(part), "{text}: {why}");
        }
        let unknown =
            toml::from_str::<ReportConfig>("sql = 'SELECT 1'\nparameters = { n = 'Identifier' }").unwrap_err();
        assert!(unknown.to_string().contains("is no type of a parameter"), "{unknown}");
    }

    #[test]
    fn clickhouse_has_less_time_than_the_handler() {
        let limits = OperationConfig::default();
        assert_eq!(limits.max_time(Duration::from_secs(300)), Duration::from_secs(240));
        let shorter = OperationConfig { max_time: Some(Timespan(Duration::from_secs(7))), ..limits.clone() };
        assert_eq!(shorter.max_time(Duration::from_secs(300)), Duration::from_secs(7));
        let longer = OperationConfig { max_time: Some(Timespan(Duration::from_secs(700))), ..limits };
        assert_eq!(longer.max_time(Duration::from_secs(10)), Duration::from_secs(8));
    }
}
