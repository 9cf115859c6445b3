//! Rows of the initial copy: from COPY's text format to blocks.
//!
//! The same parsers as for the stream read the same text forms; only the framing differs. Fields
//! are separated by tabs, rows end with a newline, `\N` is NULL, and a backslash escapes what
//! would be mistaken for one of these.
//!
//! Source: PostgreSQL's documentation of COPY, "File Formats", "Text Format".

use super::{batch::CellError, block::Block, table::Table, text::ValueError};
use crate::event::Version;
use std::sync::Arc;

/// Builds blocks from rows of COPY.
pub struct CopiedRows {
    block: Block,
    empty: Block,
    unescaped: Vec<u8>,
}

impl CopiedRows {
    /// An empty block for rows whose fields are the columns of `table`, in order.
    pub fn new(table: &Table) -> Self {
        let empty = Block::new(Arc::clone(&table.spec.columns)).with_datetime_range(table.range);
        Self { block: empty.clone(), empty, unescaped: Vec::new() }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.block.rows()
    }

    /// Bytes of memory that they hold.
    pub fn bytes(&self) -> usize {
        self.block.bytes()
    }

    /// The block, and an empty one in its place.
    pub fn take(&mut self) -> Block {
        std::mem::replace(&mut self.block, self.empty.clone())
    }

    /// Adds the rows of `data`, which ends with the end of a row.
    pub fn push(&mut self, mut data: &[u8]) -> Result<(), CellError> {
        while !data.is_empty() {
            // A newline inside a value is escaped, so the next one ends the row.
            let end = data.iter().position(|&byte| byte == b'\n').ok_or_else(CellError::protocol)?;
            self.row(&data[..end])?;
            data = &data[end + 1..];
        }
        Ok(())
    }

    fn row(&mut self, row: &[u8]) -> Result<(), CellError> {
        let columns = self.block.specs().len();
        let mut fields = row.split(|&byte| byte == b'\t');
        for column in 0..columns {
            let Some(field) = fields.next() else {
                self.block.rollback_row();
                return Err(CellError::protocol());
            };
            let into = self.block.column_mut(column);
            let pushed = if field == b"\\N" {
                into.push_null()
            } else if field.contains(&b'\\') {
                self.unescaped.clear();
                unescape(field, &mut self.unescaped).and_then(|()| into.push_text(&self.unescaped))
            } else {
                into.push_text(field)
            };
            if let Err(error) = pushed {
                self.block.rollback_row();
                return Err(CellError { column: self.block.specs()[column].name.clone(), error });
            }
        }
        if fields.next().is_some() {
            self.block.rollback_row();
            return Err(CellError::protocol());
        }
        self.block.commit_row(Version::COPY.0, false);
        Ok(())
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
    use super::super::{block::ColumnSpec, types::ColumnType};
    use super::*;

    fn rows() -> CopiedRows {
        let column = |name: &str, ty| ColumnSpec::new(name, ty, true);
        let specs: Arc<[_]> = [column("id", ColumnType::Int32), column("note", ColumnType::String)].into();
        CopiedRows { block: Block::new(Arc::clone(&specs)), empty: Block::new(specs), unescaped: Vec::new() }
    }

    #[test]
    fn escapes_nulls_and_empty_strings_are_told_apart() {
        let mut copied = rows();
        copied.push(b"1\ta\\tb\\n\\\\N\n2\t\\N\n3\t\n\\N\t\\\\.\n").unwrap();
        assert_eq!(copied.rows(), 4);
        let mut expected = rows();
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
        assert_eq!(copied.take().write_native(), expected.block.write_native());
        assert_eq!(copied.rows(), 0);
    }

    #[test]
    fn what_is_not_a_row_is_an_error_and_leaves_no_half_row() {
        for data in [&b"1\n"[..], b"1\tx\ty\n", b"1\tx", b"1\tx\\\n", b"one\tx\n"] {
            let mut copied = rows();
            assert!(copied.push(data).is_err(), "{data:?}");
            assert_eq!((copied.rows(), copied.block.column(0).len()), (0, 0));
        }
    }
}
