//! Rows of the initial copy: from COPY's text format to blocks.
//!
//! The same parsers as for the stream read the same text forms; only the framing differs. Fields
//! are separated by tabs, rows end with a newline, `\N` is NULL, and a backslash escapes what
//! would be mistaken for one of these.
//!
//! Source: PostgreSQL's documentation of COPY, "File Formats", "Text Format".

use super::{
    batch::CellError,
    block::Block,
    changelog::LogOp,
    dead_letters::{self, Envelope, Letter, Letters, Operation, Reason},
    table::{Table, TableSpec},
    text::ValueError,
};
use crate::event::Version;
use memchr::{memchr, memchr2};
use std::borrow::Cow;

/// Builds blocks from rows of COPY.
pub struct CopiedRows<'a> {
    spec: &'a TableSpec,
    block: Block,
    empty: Block,
    /// An empty one that was in use before.
    spare: Option<Block>,
    letters: Letters,
    unescaped: Vec<u8>,
    /// Of a changelog: the version of the copy, and the number of the next entry.
    next: Option<(Version, u64)>,
}

impl<'a> CopiedRows<'a> {
    /// An empty block for rows whose fields are the columns of `table`, in order.
    pub fn new(table: &'a Table) -> Self {
        Self::empty(&table.spec, Block::of_table(table))
    }

    /// The same for a changelog: the rows become entries of this version, numbered from `first` on.
    pub fn of_log(table: &'a Table, version: Version, first: u64) -> Self {
        Self { next: Some((version, first)), ..Self::new(table) }
    }

    fn empty(spec: &'a TableSpec, empty: Block) -> Self {
        let (letters, unescaped) = (Letters::default(), Vec::new());
        Self { spec, block: empty.clone(), empty, spare: None, letters, unescaped, next: None }
    }

    /// The version of its rows.
    pub fn version(&self) -> Version {
        self.next.map_or(Version::COPY, |(version, _)| version)
    }

    /// How many rows there are, those that can not be held among them.
    pub fn rows(&self) -> usize {
        self.block.rows() + self.letters.rows()
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.block.bytes() + self.letters.bytes()
    }

    /// The block and the letters, and empty ones in their place.
    pub fn take(&mut self) -> (Block, Letters) {
        let next = self.spare.take().unwrap_or_else(|| self.empty.clone());
        (std::mem::replace(&mut self.block, next), std::mem::take(&mut self.letters))
    }

    /// Gives back a block that was sent: its buffers have their size already.
    pub fn give_back(&mut self, block: Block) {
        self.spare = block.emptied();
    }

    /// Adds the rows of `data`, which ends with the end of a row.
    pub fn push(&mut self, mut data: &[u8]) -> Result<(), CellError> {
        while !data.is_empty() {
            // A newline inside a value is escaped, so the next one ends the row.
            let end = memchr(b'\n', data).ok_or_else(CellError::protocol)?;
            if let Err(error) = self.row(&data[..end]) {
                if !dead_letters::takes(self.spec, &error) {
                    return Err(error);
                }
                self.lose(&data[..end], &error)?;
            }
            data = &data[end + 1..];
        }
        Ok(())
    }

    fn row(&mut self, row: &[u8]) -> Result<(), CellError> {
        let columns = self.block.specs().len();
        let mut fields = Fields { rest: Some(row) };
        for column in 0..columns {
            let Some((field, is_escaped)) = fields.next() else {
                self.block.rollback_row();
                return Err(CellError::protocol());
            };
            let into = self.block.column_mut(column);
            let pushed = if !is_escaped {
                into.push_text(field)
            } else if field == b"\\N" {
                into.push_null()
            } else {
                self.unescaped.clear();
                unescape(field, &mut self.unescaped).and_then(|()| into.push_text(&self.unescaped))
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError::Value { column: self.block.specs()[column].name.clone(), error });
            }
        }
        if fields.next().is_some() {
            self.block.rollback_row();
            return Err(CellError::protocol());
        }
        match &mut self.next {
            None => self.block.commit_row(Version::COPY.0, false),
            Some((version, ordinal)) => {
                self.block.commit_entry(version.0, *ordinal, LogOp::Copy);
                *ordinal += 1;
            }
        }
        Ok(())
    }

    /// Adds a letter for a row that can not be held.
    fn lose(&mut self, row: &[u8], error: &CellError) -> Result<(), CellError> {
        let fields = row.split(|&byte| byte == b'\t').map(|field| {
            let mut text = Vec::new();
            // An escape that is none was the error already, or comes after it.
            let read = (field != b"\\N").then(|| unescape(field, &mut text)).transpose();
            read.map(|read| read.map(|()| text)).map_err(|_| CellError::protocol())
        });
        let fields = fields.collect::<Result<Vec<Option<Vec<u8>>>, _>>()?;
        if fields.len() != self.spec.columns.len() {
            return Err(CellError::protocol());
        }
        let mut envelope = Envelope::default();
        for (column, text) in self.spec.columns.iter().zip(&fields) {
            envelope.new_value(&column.name, column.shown(text.as_deref()).as_deref());
        }
        let shown = |column: usize| {
            let text = self.spec.columns[column].shown(fields[column].as_deref());
            text.map(Cow::into_owned).unwrap_or_default()
        };
        let (version, ordinal) = match &mut self.next {
            None => (Version::COPY, None),
            Some((version, ordinal)) => {
                *ordinal += 1;
                (*version, Some((*ordinal - 1).to_string().into_bytes()))
            }
        };
        let letter = Letter {
            version,
            transaction: None,
            operation: Operation::Copy,
            key: self.spec.key.iter().map(|&column| shown(column)).chain(ordinal).collect(),
            reason: Reason::from(error),
            envelope,
        };
        self.letters.add(self.spec, letter);
        Ok(())
    }
}

/// The fields of a row, and of each whether there is a backslash in it.
struct Fields<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], bool);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let (mut from, mut is_escaped) = (0, false);
        loop {
            match memchr2(b'\t', b'\\', &rest[from..]).map(|at| from + at) {
                None => {
                    self.rest = None;
                    return Some((rest, is_escaped));
                }
                Some(at) if rest[at] == b'\t' => {
                    self.rest = Some(&rest[at + 1..]);
                    return Some((&rest[..at], is_escaped));
                }
                Some(at) => (from, is_escaped) = (at + 1, true),
            }
        }
    }
}

/// Takes away the escapes that COPY TO writes. It never writes octal or hexadecimal ones.
fn unescape(field: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let escaped = bytes.next().ok_or(ValueError::Malformed("a backslash at the end of a field"))?;
        out.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => *other,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{block::ColumnSpec, table::Choices, types::ColumnType};
    use super::*;
    use crate::config::{TableOptions, Unrepresentable};
    use std::sync::Arc;

    fn spec(unrepresentable: Unrepresentable) -> TableSpec {
        let column = |name: &str, ty| ColumnSpec::new(name, ty, true);
        let columns = [column("id", ColumnType::Int32), column("note", ColumnType::String)].into();
        let (schema, name, target) = ("public".to_owned(), "t".to_owned(), "t".to_owned());
        TableSpec {
            oid: 1,
            schema,
            name,
            target,
            sources: Vec::new(),
            excluded: Vec::new(),
            columns,
            key: vec![0],
            changelog: false,
            filter: None,
            choices: Choices::default(),
            options: TableOptions { unrepresentable, ..TableOptions::default() },
            time64: false,
            null_instead: Vec::new(),
        }
    }

    fn rows(spec: &TableSpec) -> CopiedRows<'_> {
        CopiedRows::empty(spec, Block::new(Arc::clone(&spec.columns)))
    }

    #[test]
    fn escapes_nulls_and_empty_strings_are_told_apart() {
        let spec = spec(Unrepresentable::Fail);
        let mut copied = rows(&spec);
        copied.push(b"1\ta\\tb\\n\\\\N\n2\t\\N\n3\t\n\\N\t\\\\.\n").unwrap();
        assert_eq!(copied.rows(), 4);
        let mut expected = rows(&spec);
        for (id, note) in
            [(Some("1"), Some("a\tb\n\\N")), (Some("2"), None), (Some("3"), Some("")), (None, Some("\\."))]
        {
            for (column, value) in [id, note].into_iter().enumerate() {
                let into = expected.block.column_mut(column);
                let pushed = match value {
                    Some(text) => into.push_text(text.as_bytes()),
                    None => into.push_null(),
                };
                pushed.unwrap();
            }
            expected.block.commit_row(0, false);
        }
        assert_eq!(copied.take().0.write_native(), expected.block.write_native());
        assert_eq!(copied.rows(), 0);
    }

    #[test]
    fn what_is_not_a_row_is_an_error_and_leaves_no_half_row() {
        let spec = spec(Unrepresentable::Fail);
        for data in [&b"1\n"[..], b"1\tx\ty\n", b"1\tx", b"1\tx\\\n", b"one\tx\n"] {
            let mut copied = rows(&spec);
            assert!(copied.push(data).is_err(), "{data:?}");
            assert_eq!((copied.rows(), copied.block.column(0).len()), (0, 0));
        }
    }

    #[test]
    fn a_row_that_can_not_be_held_becomes_a_letter_and_the_others_stay() {
        let spec = spec(Unrepresentable::DeadLetter);
        let mut copied = rows(&spec);
        copied.push(b"1\ta\n3000000000\tb\\tc\n\\N\t\\N\n2\td\n").unwrap();
        assert!(copied.push(b"4000000000\n").is_err(), "a row that is not one is no letter");
        let (block, letters) = copied.take();
        assert_eq!((block.rows(), letters.rows()), (3, 1));
        let data = letters.into_data();
        let holds = |text: &str| data.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds(r#"{"new":{"id":"3000000000","note":"b\tc"}}"#) && holds(r#"{"id":"3000000000"}"#));
    }
}
