//! As much of SQL as comes in.

use std::collections::HashMap;

/// The parameters of a URL.
pub(crate) fn parameters(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next().unwrap_or_default(), bytes.next().unwrap_or_default()];
                out.push(u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or_default());
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A name without its quotes; those of a schedule need no more.
pub(crate) fn unquoted(name: &str) -> String {
    name.trim_matches(['`', '"']).to_owned()
}

/// ``t` WHERE _version < toUInt128('7') …`: the target, and the version.
pub(crate) fn delete(text: &str) -> (String, u128) {
    let (target, rest) = text.split_once(' ').unwrap_or((text, ""));
    let version = rest.split('\'').nth(1).and_then(|digits| digits.parse().ok());
    (unquoted(target), version.unwrap_or_default())
}

/// Which processes a statement speaks of.
pub(crate) struct Processes {
    prefix: String,
    others: Vec<String>,
}

impl Processes {
    /// `… startsWith(query_id, 'prefix') AND query_id NOT IN ('', 'id') …`
    pub(crate) fn parse(condition: &str) -> Self {
        let mut quoted = condition.split('\'').skip(1).step_by(2).map(str::to_owned);
        let prefix = quoted.next().unwrap_or_default();
        Self { prefix, others: quoted.collect() }
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        id.starts_with(&self.prefix) && !self.others.iter().any(|other| other == id)
    }
}

/// `table (names) SETTINGS … VALUES (values), …`
pub(crate) struct Insert {
    pub(crate) table: String,
    /// By the columns' names.
    pub(crate) rows: Vec<HashMap<String, String>>,
}

impl Insert {
    pub(crate) fn parse(text: &str) -> Self {
        let (table, rest) = text.split_once(" (").unwrap_or((text, ""));
        let (names, rest) = rest.split_once(')').unwrap_or((rest, ""));
        let names: Vec<&str> = names.split(',').map(str::trim).collect();
        let (_, values) = rest.split_once(" VALUES ").unwrap_or(("", ""));
        let values = literals(values);
        let named = |row: &[String]| names.iter().map(|name| (*name).to_owned()).zip(row.iter().cloned()).collect();
        Self { table: unquoted(table), rows: values.chunks(names.len().max(1)).map(named).collect() }
    }
}

/// The numbers and texts of a list.
fn literals(text: &str) -> Vec<String> {
    let (mut all, mut chars) = (Vec::new(), text.chars().peekable());
    while let Some(&first) = chars.peek() {
        let mut literal = String::new();
        match first {
            '\'' => {
                chars.next();
                while let Some(one) = chars.next().filter(|one| *one != '\'') {
                    let escaped = |one| match one {
                        'n' => '\n',
                        't' => '\t',
                        other => other,
                    };
                    literal.extend(if one == '\\' { chars.next().map(escaped) } else { Some(one) });
                }
                all.push(literal);
            }
            '0'..='9' => {
                while let Some(one) = chars.next_if(char::is_ascii_digit) {
                    literal.push(one);
                }
                all.push(literal);
            }
            _ => _ = chars.next(),
        }
    }
    all
}
