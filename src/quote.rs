//! Names and strings as SQL text, one function per server and kind.
//!
//! Every name that came from a catalog or a configuration passes through here on its way into a
//! statement, so that no table can be called something that changes the statement's meaning.
//! Statements that hold such names go through `query_raw` of the ClickHouse client: its `query`
//! would take a `?` in a name for a parameter.

/// A PostgreSQL identifier: in double quotes, with those inside doubled.
pub fn postgres(ident: &str) -> String {
    format!("\"{}\"", ident.replace('"', "\"\""))
}

/// A PostgreSQL table with its schema: `"schema"."name"`.
pub fn postgres_table(schema: &str, name: &str) -> String {
    format!("{}.{}", postgres(schema), postgres(name))
}

/// A ClickHouse identifier: in backticks, with backslashes and backticks escaped.
pub fn clickhouse(ident: &str) -> String {
    format!("`{}`", ident.replace('\\', "\\\\").replace('`', "\\`"))
}

/// A PostgreSQL string literal, for sessions with `standard_conforming_strings = on`.
pub fn postgres_string(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A ClickHouse string literal.
pub fn clickhouse_string(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postgres_name_can_hold_anything() {
        for (name, quoted) in [
            ("plain", r#""plain""#),
            (r#"say "hi""#, r#""say ""hi""""#),
            (r"back\slash", r#""back\slash""#),
            ("tick`tick", r#""tick`tick""#),
            ("quote's", r#""quote's""#),
            ("😀 ? {} ?? {id:Int}", r#""😀 ? {} ?? {id:Int}""#),
        ] {
            assert_eq!(postgres(name), quoted);
        }
    }

    #[test]
    fn a_clickhouse_name_can_hold_anything() {
        for (name, quoted) in [
            ("plain", "`plain`"),
            (r#"say "hi""#, r#"`say "hi"`"#),
            (r"back\slash", r"`back\\slash`"),
            (r"ends in \", r"`ends in \\`"),
            ("tick`tick", r"`tick\`tick`"),
            (r"\`", r"`\\\``"),
            ("quote's", "`quote's`"),
            ("😀 ? {} ?? {id:Int}", "`😀 ? {} ?? {id:Int}`"),
        ] {
            assert_eq!(clickhouse(name), quoted);
        }
    }

    #[test]
    fn strings_end_where_they_should() {
        assert_eq!(postgres_string(r"it's \ ok"), r"'it''s \ ok'");
        assert_eq!(clickhouse_string(r"it's \ ok"), r"'it\'s \\ ok'");
    }
}
