//! Which tables are meant: globs over `schema.table`.
//!
//! Schema and table are matched apart, so a `*` never crosses the dot between them, whatever
//! characters the names contain. Letters match in their own case, as PostgreSQL stores names.

use std::{fmt, str::FromStr};

use globset::{GlobBuilder, GlobMatcher};
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::value::as_text;

/// One pattern such as `public.*` or `crm.{contact,lead}`.
///
/// `*` is any text, `?` one byte, `[a-z]` a class, `{a,b}` alternatives; a backslash takes the next
/// character literally. The first dot outside brackets and braces ends the schema.
#[derive(Clone)]
pub struct Glob {
    text: String,
    schema: GlobMatcher,
    name: GlobMatcher,
}

impl Glob {
    /// Whether the table is meant.
    pub fn matches(&self, schema: &str, name: &str) -> bool {
        self.schema.is_match(schema) && self.name.is_match(name)
    }
}

impl FromStr for Glob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = |why: &str| format!("{text:?} is not a pattern over schema.table, such as \"public.*\": {why}");
        let (schema, name) = split_outside(text, '.')
            .filter(|(schema, name)| !schema.is_empty() && !name.is_empty())
            .ok_or_else(|| refused("it needs a schema, a dot and a table"))?;
        let compile = |part: &str| {
            let glob = GlobBuilder::new(part).backslash_escape(true).build();
            glob.map(|glob| glob.compile_matcher()).map_err(|error| refused(&error.kind().to_string()))
        };
        Ok(Self { text: text.to_owned(), schema: compile(schema)?, name: compile(name)? })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

as_text!(Glob);

/// Cuts at the first `separator` that is neither escaped nor inside `[…]` or `{…}`.
fn split_outside(text: &str, separator: char) -> Option<(&str, &str)> {
    let (mut depth, mut escaped) = (0_u32, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ if character == separator && depth == 0 => {
                return Some((&text[..at], &text[at + character.len_utf8()..]));
            }
            _ => {}
        }
    }
    None
}

/// A list of globs, from a list or (as the environment gives it) from one text with commas.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Glob>, D::Error> {
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Vec<Glob>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of patterns over schema.table")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(items))
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let mut globs = Vec::new();
            let mut rest = Some(text);
            while let Some(text) = rest {
                let (item, tail) = split_outside(text, ',').map_or((text, None), |(item, tail)| (item, Some(tail)));
                globs.push(item.trim().parse().map_err(E::custom)?);
                rest = tail;
            }
            Ok(globs)
        }
    }

    deserializer.deserialize_any(List)
}

/// Tables that match one of some patterns and none of others.
#[derive(Clone, Debug, PartialEq)]
pub struct TableFilter {
    tables: Vec<Glob>,
    exclude: Vec<Glob>,
    /// One that is never meant, by schema and name.
    except: Option<(String, String)>,
}

impl TableFilter {
    /// From patterns that were read already.
    pub fn new(tables: Vec<Glob>, exclude: Vec<Glob>) -> Self {
        Self { tables, exclude, except: None }
    }

    /// The same without this table, of schema and name.
    pub fn without(self, except: Option<(String, String)>) -> Self {
        Self { except, ..self }
    }

    /// From patterns as text.
    pub fn parse(tables: &[&str], exclude: &[&str]) -> Result<Self, String> {
        let globs = |texts: &[&str]| texts.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        Ok(Self::new(globs(tables)?, globs(exclude)?))
    }

    /// Whether the table is meant.
    pub fn matches(&self, schema: &str, name: &str) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(schema, name));
        let excepted = self.except.as_ref().is_some_and(|(of, table)| (of.as_str(), table.as_str()) == (schema, name));
        any(&self.tables) && !any(&self.exclude) && !excepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, schema: &str, name: &str) -> bool {
        pattern.parse::<Glob>().expect(pattern).matches(schema, name)
    }

    #[test]
    fn a_star_stays_on_its_side_of_the_dot() {
        assert!(matches("public.*", "public", "sales_order"));
        assert!(!matches("public.*", "public_archive", "sales_order"));
        assert!(matches("pub*.order", "public", "order"));
        assert!(matches("*.*", "crm", "contact"));
    }

    #[test]
    fn names_may_hold_dots_slashes_spaces_and_any_letters() {
        assert!(matches("public.*", "public", "a.b/c d\\e"));
        assert!(matches("public.a.b", "public", "a.b"));
        assert!(matches("my[.]schema.t", "my.schema", "t"));
        assert!(matches(r"my\.schema.t", "my.schema", "t"));
        assert!(matches("public.{größe,✓}", "public", "größe"));
        assert!(matches("public.**", "public", "deep/er"));
    }

    #[test]
    fn letters_match_in_their_own_case() {
        assert!(matches("public.SalesOrder", "public", "SalesOrder"));
        assert!(!matches("public.salesorder", "public", "SalesOrder"));
    }

    #[test]
    fn a_pattern_without_schema_or_table_is_refused() {
        for text in ["", "orders", ".orders", "public.", "[.]", "public.[", "public.{a"] {
            let error = text.parse::<Glob>().expect_err(text);
            assert!(error.contains("public.*"), "{error}");
        }
    }

    #[test]
    fn an_excluded_table_is_out_whatever_else_matches_it() {
        let filter = TableFilter::parse(&["public.*", "crm.contact"], &["public.tmp_*", "*.secret"]).expect("patterns");
        assert!(filter.matches("public", "sales_order"));
        assert!(filter.matches("crm", "contact"));
        assert!(!filter.matches("crm", "lead"));
        assert!(!filter.matches("public", "tmp_1"));
        assert!(!filter.matches("public", "secret"));
    }
}
