//! A replication stream, made up byte by byte: what PostgreSQL would send for rows of a certain shape.
//!
//! The same number of rows gives the same bytes on every machine, so counts of instructions over
//! them can be compared.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::Type;
use walhouse::{
    clickhouse::{
        batch::{At, Batch, Outcome, RowChange},
        table::{Plan, Table, TableSpec},
        text::DateTimeRange,
    },
    config::TableOptions,
    event::{
        Epoch, Event, Group, KeyKind, Lsn, Op, Relation, RelationColumn, ReplicaIdentity, SourceColumn, SourceTable,
        Span, TableKind, Tuple, Version,
    },
    postgres::assembler::Assembler,
};

const OID: u32 = 16_384;
/// Rows of one transaction.
const TRANSACTION: u64 = 20_000;
/// `numeric(12, 2)` and `char(3)`, as `pg_attribute.atttypmod` has them.
const NUMERIC_12_2: i32 = (12 << 16 | 2) + 4;
const CHAR_3: i32 = 3 + 4;

/// What happens to every row of the stream.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// It is new.
    Insert,
    /// It changes, and its key does not.
    Update,
    /// It is gone.
    Delete,
}

/// A table, and a way to make its rows.
pub(crate) struct Shape {
    columns: Vec<SourceColumn>,
    value: fn(column: usize, row: u64) -> Option<String>,
}

impl Shape {
    /// An order of a shop: nine columns.
    pub(crate) fn narrow() -> Self {
        let types = [
            (Type::INT8, -1),
            (Type::INT8, -1),
            (Type::TEXT, -1),
            (Type::NUMERIC, NUMERIC_12_2),
            (Type::BPCHAR, CHAR_3),
            (Type::TIMESTAMPTZ, -1),
            (Type::TIMESTAMPTZ, -1),
            (Type::TEXT, -1),
            (Type::JSONB, -1),
        ];
        Self { columns: columns(&types), value: narrow_value }
    }

    /// Sixty columns of ten types.
    pub(crate) fn wide() -> Self {
        let types: Vec<_> = (0..60).map(|column| (wide_type(column), -1)).collect();
        Self { columns: columns(&types), value: wide_value }
    }

    /// The bytes that the server would send for `rows` rows, in transactions of 20,000.
    pub(crate) fn stream(&self, rows: u64, kind: Kind) -> BytesMut {
        let mut out = BytesMut::new();
        message(&mut out, 0, |body| self.put_relation(body));
        // Announced inside of a transaction by PostgreSQL; the assembler takes it anywhere.
        for row in 0..rows {
            let commit = 1_000_000_000 * (row / TRANSACTION + 1);
            let record = commit - 1_000_000_000 + row % TRANSACTION * 100 + 1;
            if row % TRANSACTION == 0 {
                message(&mut out, record, |body| {
                    body.put_u8(b'B');
                    body.put_u64(commit);
                    body.put_u64(0);
                    body.put_u32(700);
                });
            }
            message(&mut out, record, |body| self.put_row(body, row, kind));
            if row % TRANSACTION == TRANSACTION - 1 || row == rows - 1 {
                message(&mut out, commit, |body| {
                    body.put_slice(b"C\0");
                    body.put_u64(commit);
                    body.put_u64(commit + 48);
                    body.put_u64(0);
                });
            }
        }
        out
    }

    fn put_relation(&self, body: &mut BytesMut) {
        body.put_u8(b'R');
        body.put_u32(OID);
        body.put_slice(b"public\0sales_order\0d");
        body.put_u16(self.columns.len() as u16);
        for column in &self.columns {
            body.put_u8(column.key_position.is_some().into());
            body.put_slice(column.name.as_bytes());
            body.put_u8(0);
            body.put_u32(column.type_oid);
            body.put_i32(column.type_modifier);
        }
    }

    fn put_row(&self, body: &mut BytesMut, row: u64, kind: Kind) {
        let (letters, key_only): (&[u8], _) = match kind {
            Kind::Insert => (b"IN", false),
            Kind::Update => (b"UN", false),
            Kind::Delete => (b"DK", true),
        };
        body.put_u8(letters[0]);
        body.put_u32(OID);
        body.put_u8(letters[1]);
        body.put_u16(self.columns.len() as u16);
        for (index, column) in self.columns.iter().enumerate() {
            match (self.value)(index, row).filter(|_| !key_only || column.key_position.is_some()) {
                None => body.put_u8(b'n'),
                Some(text) => {
                    body.put_u8(b't');
                    body.put_u32(text.len() as u32);
                    body.put_slice(text.as_bytes());
                }
            }
        }
    }

    /// The table's target, and how the stream's tuples lie on it.
    pub(crate) fn target(&self) -> Target {
        let source = SourceTable {
            oid: OID,
            schema: "public".to_owned(),
            name: "sales_order".to_owned(),
            kind: TableKind::Table,
            replica_identity: ReplicaIdentity::Default,
            columns: self.columns.clone(),
            key: Ok(KeyKind::PrimaryKey),
            filter: None,
            heaps: Vec::new(),
        };
        let relation = Relation {
            oid: OID,
            schema: source.schema.clone(),
            name: source.name.clone(),
            identity: source.replica_identity,
            columns: self.columns.iter().map(relation_column).collect(),
        };
        let spec = TableSpec::new(&source, &TableOptions::default(), true).expect("the table can be replicated");
        let plan = Plan::new(&spec, &relation).expect("the relation is that of the table");
        Target { table: Table::new(spec, String::new(), DateTimeRange::Wide, Lsn::ZERO), plan }
    }
}

/// Where rows go.
pub(crate) struct Target {
    table: std::sync::Arc<Table>,
    plan: Plan,
}

impl Target {
    /// An empty batch.
    pub(crate) fn batch(&self) -> Batch {
        Batch::new(&self.table, None, false, 0, std::time::UNIX_EPOCH)
    }

    /// Puts the group's changes into the batch, as the sink does.
    pub(crate) fn fill(&self, batch: &mut Batch, group: &Group) {
        let mut commit = Lsn::ZERO;
        for event in &group.events {
            let change = match event {
                Event::Begin(transaction) => {
                    commit = transaction.commit;
                    continue;
                }
                Event::Change(change) => change,
                _ => continue,
            };
            let tuple = |span: Span| Tuple::parsed(span.bytes(&group.data)).expect("the tuple is whole");
            let row = match change.op {
                Op::Insert { new } => RowChange::Insert(tuple(new)),
                Op::Update { old, old_is_key, new } => {
                    RowChange::Update(old.map(|old| (tuple(old), old_is_key)), tuple(new))
                }
                Op::Delete { old, .. } => RowChange::Delete(tuple(old)),
            };
            let version = Version::new(Epoch(0), commit, change.record);
            let at = At { version, ordinal: 0, xid: 700, time: std::time::UNIX_EPOCH };
            let outcome = batch.add(&self.table.spec, &self.plan, row, at).expect("every value fits");
            assert_eq!(outcome, Outcome::Added);
        }
    }
}

/// The groups that the reader makes of a stream that arrives in gulps of `gulp` bytes.
pub(crate) fn groups(mut stream: BytesMut, gulp: usize, mut each: impl FnMut(Group)) {
    let mut assembler = Assembler::new(Lsn::ZERO);
    let mut buffer = BytesMut::new();
    while !stream.is_empty() {
        let part = stream.split_to(gulp.min(stream.len()));
        buffer.extend_from_slice(&part);
        let taken = assembler.take(&mut buffer, false).expect("the stream is in order");
        taken.group.into_iter().for_each(&mut each);
    }
    assert!(buffer.is_empty(), "the stream ends with a whole message");
}

/// One CopyData with one XLogData.
fn message(out: &mut BytesMut, at: u64, put: impl FnOnce(&mut BytesMut)) {
    let mut body = BytesMut::new();
    put(&mut body);
    out.put_u8(b'd');
    out.put_u32((4 + 1 + 8 + 8 + 8 + body.len()) as u32);
    out.put_u8(b'w');
    out.put_u64(at);
    out.put_u64(at);
    out.put_u64(0);
    out.put_slice(&body);
}

fn columns(types: &[(Type, i32)]) -> Vec<SourceColumn> {
    let column = |(index, (ty, modifier)): (usize, &(Type, i32))| SourceColumn {
        attnum: index as i16 + 1,
        name: format!("column_{index}"),
        declared_oid: ty.oid(),
        declared_modifier: *modifier,
        type_oid: ty.oid(),
        type_modifier: *modifier,
        not_null: index < 7,
        key_position: (index == 0).then_some(0),
        ..SourceColumn::default()
    };
    types.iter().enumerate().map(column).collect()
}

fn relation_column(column: &SourceColumn) -> RelationColumn {
    RelationColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        key: column.key_position.is_some(),
    }
}

fn narrow_value(column: usize, row: u64) -> Option<String> {
    Some(match column {
        0 => (1_000_000 + row).to_string(),
        1 => (row % 50_000).to_string(),
        2 => ["draft", "paid", "shipped", "delivered"][row as usize % 4].to_owned(),
        3 => format!("{}.{:02}", row % 10_000, row % 100),
        4 => "EUR".to_owned(),
        5 => moment(row),
        6 => format!("2026-01-02 10:{:02}:{:02}.{:06}+00", row / 60 % 60, row % 60, row % 1_000_000),
        7 if !row.is_multiple_of(3) => return None,
        7 => format!("to the neighbours, {row}"),
        _ => format!(r#"{{"items": {}, "source": "web"}}"#, row % 7),
    })
}

fn wide_type(column: usize) -> Type {
    let types = [
        Type::INT8,
        Type::INT4,
        Type::TEXT,
        Type::BOOL,
        Type::FLOAT8,
        Type::TIMESTAMPTZ,
        Type::DATE,
        Type::UUID,
        Type::JSONB,
        Type::INT2,
    ];
    types[column % types.len()].clone()
}

fn wide_value(column: usize, row: u64) -> Option<String> {
    let number = row.wrapping_mul(7919).wrapping_add(column as u64);
    Some(match column % 10 {
        0 if column == 0 => row.to_string(),
        0 => number.to_string(),
        1 => (number % 1_000_000).to_string(),
        2 => format!("text {column} of row {row}"),
        3 => if number.is_multiple_of(2) { "t" } else { "f" }.to_owned(),
        4 => format!("{}.{}", number % 1000, number % 97),
        5 => moment(number),
        6 => format!("20{:02}-{:02}-{:02}", number % 100, number % 12 + 1, number % 28 + 1),
        7 => format!("{:08x}-1234-4321-abcd-{:012x}", number as u32, number),
        8 => format!(r#"{{"n": {column}, "list": [{row}, {}, "x"]}}"#, row % 9),
        _ => (number % 30_000).to_string(),
    })
}

fn moment(row: u64) -> String {
    format!("2026-{:02}-{:02} {:02}:{:02}:{:02}+00", row % 12 + 1, row % 28 + 1, row % 24, row % 60, row % 59)
}
