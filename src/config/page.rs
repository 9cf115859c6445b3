//! `docs/configuration.md`, made of the code: what a key is for and when to change it of its field's doc comment, its default of
//! the defaults, its range and its words of what the loader says when a value is out of them.
//!
//! A doc comment of a field has two paragraphs: what the key is, and when to change it.

mod held;

use super::{Config, QueueConfig, ReportConfig, TableConfig, load::load_with};
use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

const BEGIN: &str = "<!-- Made by the test the_page_of_the_configuration_is_what_the_code_has: run it with WALHOUSE_WRITE_DOCS=1. -->\n";
const END: &str = "<!-- The end of what it makes. -->\n";

/// What stands for a name that the one who configures chooses: on the page, and when the loader is asked.
const NAMED: [(&str, &str, &str); 3] =
    [("tables", "\"schema.name\"", "\"public.t\""), ("reports", "name", "r"), ("columns", "column", "c")];
/// Those that have no default.
const REQUIRED: [&str; 2] = ["source.url", "reports.name.sql"];
const SQL: &str = "SELECT {merchant:String} AS merchant";

/// A field of a section's struct.
struct Field {
    name: String,
    of: String,
    doc: Vec<String>,
}

/// A section, as the page shows it.
struct Section {
    /// `source.snapshot`; empty for the root.
    path: String,
    /// The same with names that exist.
    real: String,
    about: String,
    keys: Vec<Key>,
    /// All names that the loader has to know in it.
    names: Vec<String>,
}

/// A key with a value.
struct Key {
    path: String,
    real: String,
    of: String,
    meaning: String,
    advice: String,
}

/// All structs of the configuration, by name, read from their source as rustfmt leaves it.
fn structs() -> BTreeMap<String, Vec<Field>> {
    let mut structs = BTreeMap::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                let name = line.trim_start_matches("pub ").strip_prefix("struct ");
                if let Some(name) = name.and_then(|name| name.strip_suffix(" {")) {
                    structs.insert(name.to_owned(), fields(lines.by_ref()));
                }
            }
        }
    }
    structs
}

/// The fields of a struct, up to its closing brace.
fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Field> {
    let (mut fields, mut doc, mut skipped) = (Vec::new(), vec![String::new()], false);
    for line in lines.take_while(|line| *line != "}").map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            let paragraph = doc.last_mut().expect("there is one at least");
            match text.trim() {
                "" => doc.push(String::new()),
                text if paragraph.is_empty() => paragraph.push_str(text),
                text => *paragraph += &format!(" {text}"),
            }
        } else if line.starts_with("#[") {
            skipped |= line == "#[serde(skip)]";
        } else if let Some((name, of)) = line.trim_start_matches("pub ").split_once(": ") {
            let doc = std::mem::replace(&mut doc, vec![String::new()]);
            if !std::mem::take(&mut skipped) {
                fields.push(Field { name: name.to_owned(), of: of.trim_end_matches(',').to_owned(), doc });
            }
        }
    }
    fields
}

/// The sections of `docs/configuration.md`, in the order of the tree.
fn sections() -> Vec<Section> {
    let structs = structs();
    let mut sections = Vec::new();
    walk(&structs, "Config", String::new(), String::new(), String::new(), &mut sections);
    sections
}

fn walk(
    structs: &BTreeMap<String, Vec<Field>>,
    name: &str,
    path: String,
    real: String,
    about: String,
    sections: &mut Vec<Section>,
) {
    let at = sections.len();
    sections.push(Section { path: path.clone(), real: real.clone(), about, keys: Vec::new(), names: Vec::new() });
    let under = |path: &str, name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for field in &structs[name] {
        sections[at].names.push(field.name.clone());
        let of = field.of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>')).unwrap_or(&field.of);
        let many = of.strip_prefix("BTreeMap<String, ").and_then(|of| of.strip_suffix('>'));
        let (mut path, mut real) = (under(&path, &field.name), under(&real, &field.name));
        let inner = many.unwrap_or(of);
        if structs.contains_key(inner) && inner.ends_with("Config") {
            if many.is_some() {
                let (_, shown, asked) = NAMED.iter().find(|(of, ..)| *of == field.name).expect("a name for the page");
                path = under(&path, shown);
                real = under(&real, asked);
            }
            walk(structs, inner, path, real, field.doc.join(" "), sections);
        } else if of != "NotYet" {
            let mut doc = field.doc.iter().cloned();
            let (meaning, advice) = (doc.next().unwrap_or_default(), doc.collect::<Vec<_>>().join(" "));
            sections[at].keys.push(Key { path, real, of: of.to_owned(), meaning, advice });
        }
    }
}

/// What the loader says of a configuration; `Err` is its message.
fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let given = [("TOML", text)].into_iter().chain(variables.iter().copied());
    let given = given.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load_with(Path::new("env:TOML"), given).map_err(|error| error.to_string())
}

/// A configuration in which this key has this value, and the rest what it needs.
fn with(real: &str, value: &str) -> String {
    let mut text = String::new();
    if real != "source.url" {
        text += "source.url = \"postgres://w@localhost/shop\"\n";
    }
    if real.starts_with("reports.") && !real.ends_with(".sql") {
        text += &format!("reports.r.sql = \"{SQL}\"\n");
    }
    text + &format!("{real} = {value}\n")
}

/// What a key takes, told by the loader: the end of its refusal of values that are out of everybody's range.
fn range(key: &Key) -> Option<String> {
    let values: &[&str] = match key.of.as_str() {
        "usize" | "u64" => &["1_000_000_000_000_000_000", "0"],
        "f64" => &["1e9"],
        "ByteSize" => &["\"16777216GiB\"", "\"0\""],
        "Timespan" => &["\"365days\"", "\"0s\""],
        _ => return None,
    };
    let refusals = values.iter().filter_map(|value| read(&with(&key.real, value), &[]).err());
    let ranges = refusals.filter_map(|refusal| {
        let (_, range) = refusal.rsplit_once("give ")?;
        Some(range.split(',').next().unwrap_or(range).to_owned())
    });
    ranges.into_iter().next()
}

/// The words of a closed set, again as the loader tells them.
fn words(key: &Key) -> Option<String> {
    let refusal = read(&with(&key.real, "\"no such word\""), &[]).err()?;
    let (_, words) = refusal.rsplit_once(" is none of ").or_else(|| refusal.rsplit_once(", expected "))?;
    let words = words.replace(" or ", ", ").replace(['`', '"'], "");
    Some(
        words
            .split(", ")
            .map(|word| format!("`\"{}\"`", word.trim_start_matches("one of ")))
            .collect::<Vec<_>>()
            .join(", "),
    )
}

/// What kind of value a key takes, and within which bounds.
fn kind(key: &Key) -> String {
    let kind = match key.of.as_str() {
        "usize" | "u64" => "whole number",
        "f64" => "number",
        "bool" => "`true` or `false`",
        "ByteSize" => "size",
        "Timespan" => "span of time",
        "String" => "text",
        "SecretString" => "secret text",
        "PathBuf" => "path of a file",
        "SourceUrl" => "URL",
        "SocketAddr" => "address and port",
        "Vec<Glob>" => "list of patterns",
        "Vec<String>" => "list of names",
        "BTreeMap<String, String>" => "types by column",
        "BTreeMap<String, Masking>" => "masks by column",
        "BTreeMap<String, SettingValue>" => "values by name",
        "BTreeMap<String, Parameter>" => "types by name",
        other => {
            let words = words(key);
            return words.unwrap_or_else(|| panic!("{}: say in src/config/page.rs what a {other} is", key.path));
        }
    };
    range(key).map_or_else(|| kind.to_owned(), |range| format!("{kind}, {range}"))
}

/// A configuration with every section, for the defaults.
fn defaults() -> toml::Table {
    let mut config = Config::new("postgres://w@localhost/shop".parse().expect("a URL"));
    config.queue = Some(QueueConfig::default());
    config.tables.insert("public.t".to_owned(), TableConfig::default());
    let report: ReportConfig = toml::from_str(&format!("sql = \"{SQL}\"")).expect("a report");
    config.reports.insert("r".to_owned(), report);
    toml::from_str(&config.redacted_toml().expect("TOML")).expect("its own output")
}

fn default(key: &Key, defaults: &toml::Table) -> String {
    if REQUIRED.contains(&key.path.as_str()) {
        return "has to be given".to_owned();
    }
    let mut value = None;
    let mut table = Some(defaults);
    // The one name with a dot in it is in quotes.
    for part in key.real.replace("public.t", "public:t").split('.') {
        value = table.and_then(|table| table.get(part.trim_matches('"').replace(':', ".").as_str()));
        table = value.and_then(toml::Value::as_table);
    }
    match value {
        Some(toml::Value::Integer(number)) => format!("`{}`", grouped(*number)),
        Some(value) => format!("`{value}`"),
        None if key.of.starts_with("Vec") => "`[]`".to_owned(),
        None => "none".to_owned(),
    }
}

/// `500_000`, as the example has it.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    if number < 10_000 {
        return digits;
    }
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).expect("digits")).collect();
    groups.join("_")
}

/// The variable that overrides a key; a table's name can not be spelled in one.
fn variable(key: &Key) -> Option<String> {
    let by_name = key.path.starts_with("tables.") || key.of.starts_with("BTreeMap");
    (!by_name).then(|| format!("WALHOUSE__{}", key.path.to_uppercase().replace('.', "__")))
}

fn made() -> String {
    let defaults = defaults();
    let mut text = String::new();
    for section in sections().iter().filter(|section| !section.keys.is_empty()) {
        text += &format!("\n## `[{}]`\n\n{}\n", section.path, section.about);
        for key in &section.keys {
            let variable = variable(key).map_or("in the file alone".to_owned(), |name| format!("`{name}`"));
            text += &format!(
                "\n### `{}`\n\n{}\n\n{}\n\n- {}; default: {}\n- {variable}\n",
                key.path,
                key.meaning,
                key.advice,
                kind(key),
                default(key, &defaults),
            );
        }
    }
    text + "\n"
}

#[test]
fn the_page_of_the_configuration_is_what_the_code_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/configuration.md has the mark where the keys begin");
    let (_, after) = rest.split_once(END).expect("docs/configuration.md has the mark where the keys end");
    let made = format!("{before}{BEGIN}{}{END}{after}", made());
    if std::env::var_os("WALHOUSE_WRITE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    } else {
        assert!(
            page == made,
            "docs/configuration.md is not what src/config has; run this test with WALHOUSE_WRITE_DOCS=1"
        );
    }
}
