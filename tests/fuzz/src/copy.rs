//! Rows of COPY's text format.
//!
//! An input is either what a server might send, or values that are escaped here as PostgreSQL escapes them. Each line becomes
//! the row that it says, a dead letter, or an error, after which nothing of it is left and the rows before it stay.

use super::{
    input::Input,
    oracle::{Read, read},
    text::Kind,
};
use tokio_postgres::types::Type;
use walhouse::{
    clickhouse::{
        block::Block,
        copied::CopiedRows,
        table::{Table, TableSpec},
        text::DateTimeRange,
    },
    config::{TableOptions, Unrepresentable},
    event::{KeyKind, Lsn, ReplicaIdentity, SourceColumn, SourceTable, TableKind},
};

/// `numeric(12, 2)`, as `pg_attribute.atttypmod` has it.
const NUMERIC_12_2: i32 = (12 << 16 | 2) + 4;

thread_local! {
    static TABLE: std::sync::Arc<Table> = table();
}

fn table() -> std::sync::Arc<Table> {
    let types =
        [(Type::INT4, -1), (Type::TEXT, -1), (Type::BYTEA, -1), (Type::NUMERIC, NUMERIC_12_2), (Type::TIMESTAMPTZ, -1)];
    let column = |(index, (ty, modifier)): (usize, &(Type, i32))| SourceColumn {
        attnum: index as i16 + 1,
        name: format!("column_{index}"),
        declared_oid: ty.oid(),
        declared_modifier: *modifier,
        type_oid: ty.oid(),
        type_modifier: *modifier,
        not_null: index == 0,
        key_position: (index == 0).then_some(0),
        ..SourceColumn::default()
    };
    let source = SourceTable {
        oid: 16_384,
        schema: "public".to_owned(),
        name: "t".to_owned(),
        kind: TableKind::Table,
        replica_identity: ReplicaIdentity::Default,
        columns: types.iter().enumerate().map(column).collect(),
        key: Ok(KeyKind::PrimaryKey),
        filter: None,
        heaps: Vec::new(),
    };
    let spec = TableSpec::new(&source, &TableOptions::default(), true).unwrap();
    Table::new(spec, String::new(), DateTimeRange::Wide, Lsn::ZERO)
}

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let text = if input.below(2) == 1 { escaped(&mut input) } else { input.0.to_vec() };
    TABLE.with(|table| check(table, &text));
}

fn check(table: &Table, text: &[u8]) {
    let mut copied = CopiedRows::new(table);
    let pushed = copied.push(text);
    let (mut expected, mut letters, mut is_refused) = (Block::of_table(table), 0, false);
    let mut rest = text;
    while !rest.is_empty() && !is_refused {
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            is_refused = true;
            break;
        };
        match line(table, &rest[..end]) {
            Line::Row(values) => {
                for (column, value) in values.iter().enumerate() {
                    let into = expected.column_mut(column);
                    let pushed = match value {
                        Some(text) => into.push_text(text),
                        None => into.push_null(),
                    };
                    pushed.unwrap();
                }
                expected.commit_row(0, false);
            }
            Line::Letter => letters += 1,
            Line::Refused => is_refused = true,
        }
        rest = &rest[end + 1..];
    }
    assert_eq!(pushed.is_err(), is_refused, "{:?}", pushed.err());
    let (block, lost) = copied.take();
    assert_eq!((block.rows(), lost.rows()), (expected.rows(), letters));
    for column in 0..block.specs().len() {
        assert_eq!(block.column(column).len(), block.rows(), "no half of a row is left");
    }
    assert!(block.write_native() == expected.write_native(), "every field is what it was before it was escaped");
}

enum Line {
    Row(Vec<Option<Vec<u8>>>),
    Letter,
    Refused,
}

fn line(table: &Table, line: &[u8]) -> Line {
    let specs = &table.spec.columns;
    let fields: Vec<_> = line.split(|&byte| byte == b'\t').map(unescaped).collect();
    let Some(fields) = fields.into_iter().collect::<Option<Vec<_>>>().filter(|fields| fields.len() == specs.len())
    else {
        return Line::Refused;
    };
    for (spec, field) in specs.iter().zip(&fields) {
        let (ty, nullable, range) = (spec.ty.clone(), spec.nullable, DateTimeRange::Wide);
        let kind = Kind { ty, nullable, range, policy: Unrepresentable::Fail };
        match field.as_deref().map(|text| read(&kind, text).unwrap()) {
            // A column that takes NULL by now is a change of shape.
            None if !nullable => return Line::Refused,
            None | Some(Ok(Read { .. })) => {}
            Some(Err(_)) => return Line::Letter,
        }
    }
    Line::Row(fields)
}

/// A field's value. `None` is what PostgreSQL does not write, `Some(None)` is NULL.
fn unescaped(field: &[u8]) -> Option<Option<Vec<u8>>> {
    if field == b"\\N" {
        return Some(None);
    }
    let (mut value, mut bytes) = (Vec::new(), field.iter());
    while let Some(&byte) = bytes.next() {
        let escaped = if byte == b'\\' { Some(*bytes.next()?) } else { None };
        value.push(match escaped {
            None => byte,
            Some(letter) => ESCAPES.iter().find(|(name, _)| *name == letter).map_or(letter, |(_, byte)| *byte),
        });
    }
    Some(Some(value))
}

const ESCAPES: [(u8, u8); 6] = [(b'b', 8), (b't', 9), (b'n', 10), (b'v', 11), (b'f', 12), (b'r', 13)];

/// Rows of values as PostgreSQL writes them.
fn escaped(input: &mut Input<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for row in 0..input.below(4) {
        for column in 0..5 {
            if column > 0 {
                out.push(b'\t');
            }
            let length = usize::from(input.below(24));
            let value = match (column, input.below(6)) {
                (1.., 0) => None,
                (0, 0..5) => Some(row.to_string().into_bytes()),
                (2, 1..4) => Some(format!("\\x{}", "5c09".repeat(length)).into_bytes()),
                (3, 1..4) => Some(format!("-{length}.05").into_bytes()),
                (4, 1..4) => Some(format!("2026-02-{:02} 10:00:00.5+00", length + 1).into_bytes()),
                _ => Some(input.bytes(length).to_vec()),
            };
            let field = escape(value.as_deref());
            assert!(unescaped(&field) == Some(value), "a value comes back as it was");
            out.extend(field);
        }
        out.push(b'\n');
    }
    out
}

fn escape(value: Option<&[u8]>) -> Vec<u8> {
    let Some(value) = value else { return b"\\N".to_vec() };
    let mut out = Vec::new();
    for &byte in value {
        match ESCAPES.iter().find(|(_, escaped)| *escaped == byte) {
            Some((name, _)) => out.extend([b'\\', *name]),
            None if byte == b'\\' => out.extend(b"\\\\"),
            None => out.push(byte),
        }
    }
    out
}
