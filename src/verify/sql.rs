//! The statements: the same row, rendered by each server in its own words, to one text.
//!
//! A row's canonical text is the sequence of its columns, each `N` for NULL or its length in
//! bytes of UTF-8, a colon, and its text; so no two rows share one. A hash is the first eight
//! bytes of the MD5 of such a text, as a signed number, which both servers compute, sum and
//! order alike. Nothing of it goes through a parser of ours.

mod clickhouse;
mod postgres;

pub(super) use clickhouse::ClickHouseSql;
pub(super) use postgres::{PostgresSql, SourceTraits};

/// Longer bytes are rendered as their digest: PostgreSQL has no text above 1 GB.
const BYTES_AS_HEX: usize = 1024;

/// Which rows a statement is about.
pub(super) enum Rows<'a> {
    /// All of those whose key falls into one of these buckets.
    Buckets { of: u32, wanted: &'a [i64] },
    /// Those with these keys, as text: an index finds them.
    Keys(&'a [&'a [String]]),
    /// Those whose keys have these hashes: right for every type, but the whole table is read.
    KeyHashes(&'a [i64]),
}

/// How much of each row a statement brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// Its hash and its key.
    Row,
    /// Each column's hash too.
    Columns,
    /// And the beginning of each column's value.
    Values,
}

/// So much of a value is shown, and one more character that tells of the rest.
pub(super) const SHOWN_CHARS: usize = 200;

fn join(numbers: &[i64], separator: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::{
        super::table::{ColumnPair, Rendering, TablePair},
        *,
    };

    fn table() -> TablePair {
        let column = |name: &str, kind| ColumnPair::new(name, kind);
        TablePair {
            schema: "my \"shop\"".into(),
            name: "order".into(),
            target: "my_order".into(),
            key: vec!["id".into(), "at`".into()],
            log: None,
            columns: vec![
                column("note", Rendering::Text),
                column("at`", Rendering::Float8),
                column("id", Rendering::Integer),
                column("rate", Rendering::Float8),
            ],
            filter: Some("paid".into()),
        }
    }

    const UTF8: SourceTraits = SourceTraits { utf8: true, partitioned: false };

    fn postgres(source: SourceTraits, rows: Option<&Rows<'_>>) -> String {
        let table = table();
        let key = table.key_columns().unwrap();
        let sql = PostgresSql::new(&table, &key, source);
        rows.map_or_else(|| sql.sums(16), |rows| sql.rows(rows, Detail::Row))
    }

    fn clickhouse(rows: Option<&Rows<'_>>) -> String {
        let table = table();
        let key = table.key_columns().unwrap();
        let sql = ClickHouseSql::new(&table, &key);
        rows.map_or_else(|| sql.sums(16), |rows| sql.rows(rows, Detail::Row))
    }

    fn assert_has(sql: &str, parts: &[&str]) {
        for part in parts {
            assert!(sql.contains(part), "{part}\nis not in\n{sql}");
        }
    }

    #[test]
    fn postgres_sums_by_bucket_of_the_key() {
        let sql = postgres(UTF8, None);
        assert_has(
            &sql,
            &[
                "SELECT key_hash & 15 AS bucket, count(*) AS rows, sum(row_hash)::text AS sum FROM (",
                r#"FROM ONLY "my ""shop"""."order" AS walhouse_row WHERE (paid) OFFSET 0"#,
                r#"CASE WHEN walhouse_row."note" IS DISTINCT FROM NULL THEN concat(walhouse_row."note") END AS c0"#,
                // The key in its own order, the row in the columns'.
                "md5(concat(CASE WHEN c2 IS NULL THEN 'N' ELSE concat(octet_length(c2), ':', c2) END, CASE WHEN c1 IS",
                "md5(concat(CASE WHEN c0 IS NULL",
            ],
        );
        assert!(!sql.contains("key_text"), "the keys stay in the server");
    }

    #[test]
    fn zeros_are_one_in_a_key_and_two_elsewhere() {
        assert_has(
            &postgres(UTF8, None),
            &[
                r#"float8send((CASE WHEN walhouse_row."at`" = 0 THEN 0 ELSE walhouse_row."at`" END)::float8)"#,
                r#"float8send((walhouse_row."rate")::float8)"#,
            ],
        );
        assert_has(
            &clickhouse(None),
            &[
                r"reinterpretAsUInt64(if(walhouse_row.`at\`` = 0, toFloat64(0), walhouse_row.`at\``))",
                "reinterpretAsUInt64(walhouse_row.`rate`)",
            ],
        );
    }

    #[test]
    fn another_encoding_is_measured_in_utf8_and_a_root_is_read_with_its_partitions() {
        let sql = postgres(SourceTraits { utf8: false, partitioned: true }, None);
        assert_has(&sql, &["octet_length(convert_to(c0, 'UTF8'))", "md5(convert_to(concat(", r#"FROM "my ""shop"""."#]);
    }

    #[test]
    fn clickhouse_sums_live_rows_by_bucket_of_the_key() {
        let sql = clickhouse(None);
        assert_has(
            &sql,
            &[
                "SELECT bitAnd(key_hash, toInt64(15)) AS bucket, count() AS rows, sum(toInt128(row_hash)) AS sum FROM (",
                "FROM `my_order` AS walhouse_row FINAL WHERE walhouse_row._is_deleted = 0)",
                "ifNull(concat(toString(length(toString(walhouse_row.`note`))), ':', toString(walhouse_row.`note`)), 'N')",
            ],
        );
        assert!(!sql.contains("paid"), "the source's filter has done its work");
    }

    #[test]
    fn rows_are_found_by_bucket_by_key_and_by_hash() {
        let buckets = Rows::Buckets { of: 16, wanted: &[3, 4] };
        assert_has(&postgres(UTF8, Some(&buckets)), &["WHERE key_hash & 15 IN (3, 4) ORDER BY 1, 2", "AS key_text"]);
        assert_has(&clickhouse(Some(&buckets)), &["WHERE bitAnd(key_hash, toInt64(15)) IN (3, 4) ORDER BY"]);

        let hashes = Rows::KeyHashes(&[-5, 7]);
        assert_has(&postgres(UTF8, Some(&hashes)), &["WHERE key_hash IN (-5, 7) ORDER BY"]);
        assert_has(&clickhouse(Some(&hashes)), &["WHERE key_hash IN (-5, 7) ORDER BY"]);

        let key = ["7".to_owned(), r"it's \".to_owned()];
        let keys = [key.as_slice()];
        let keys = Rows::Keys(&keys);
        assert_has(
            &postgres(UTF8, Some(&keys)),
            &[r#"WHERE (paid) AND ((walhouse_row."id", walhouse_row."at`") IN (('7', 'it''s \')))"#],
        );
        assert_has(
            &clickhouse(Some(&keys)),
            &[r"_is_deleted = 0 AND (walhouse_row.`id`, walhouse_row.`at\``) IN ((7, 'it\'s \\'))"],
        );
    }

    #[test]
    fn a_wide_row_stays_within_the_arguments_that_a_function_takes() {
        let columns: Vec<_> = (0..200).map(|i| ColumnPair::new(format!("n{i}"), Rendering::Integer)).collect();
        let table = TablePair { key: vec!["n0".into()], columns, ..table() };
        let key = table.key_columns().unwrap();
        let sql = PostgresSql::new(&table, &key, UTF8).sums(16);
        assert_has(
            &sql,
            &["md5(concat(concat(CASE WHEN c0 IS", ", concat(CASE WHEN c90 IS", ", concat(CASE WHEN c180 IS"],
        );
    }

    #[test]
    fn what_is_asked_of_1600_columns_fits_into_a_target_list() {
        let columns: Vec<_> = (0..1600).map(|i| ColumnPair::new(format!("n{i}"), Rendering::Integer)).collect();
        let table = TablePair { key: vec!["n0".into()], columns, ..table() };
        let key = table.key_columns().unwrap();
        let sql = PostgresSql::new(&table, &key, UTF8).rows(&Rows::KeyHashes(&[1]), Detail::Values);
        let (_, rendered) = sql.split_once("FROM (SELECT CASE").unwrap();
        let (rendered, _) = rendered.split_once(" FROM ONLY ").unwrap();
        // PostgreSQL takes 1,664.
        assert_eq!(rendered.matches(" AS ").count(), 1604);
    }
}
