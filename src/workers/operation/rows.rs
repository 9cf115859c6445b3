//! How many rows a result has, told from its bytes as they go by: ClickHouse says so only when all is over, and not to whoever
//! reads while it writes.

use super::request::Format;

/// So much of a Parquet file's end is kept, in which its footer is; with a larger one its rows are not known.
const TAIL: usize = 1 << 20;

/// Counts.
#[derive(Debug)]
pub(super) struct Rows {
    format: Format,
    lines: u64,
    quoted: bool,
    tail: Vec<u8>,
}

impl Rows {
    pub(super) fn new(format: Format) -> Self {
        Self { format, lines: 0, quoted: false, tail: Vec::new() }
    }

    /// What comes next.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        match self.format {
            Format::JsonLines => self.lines += memchr::memchr_iter(b'\n', bytes).count() as u64,
            Format::Csv => {
                for at in memchr::memchr2_iter(b'\n', b'"', bytes) {
                    match bytes.get(at) {
                        // A doubled one ends the quote and begins it again.
                        Some(b'"') => self.quoted = !self.quoted,
                        _ => self.lines += u64::from(!self.quoted),
                    }
                }
            }
            Format::Parquet => {
                self.tail.extend_from_slice(bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or_default());
                if self.tail.len() > 2 * TAIL {
                    self.tail.drain(..self.tail.len() - TAIL);
                }
            }
        }
    }

    /// The rows so far; of a Parquet file, those of all of it once it has ended.
    pub(super) fn count(&self) -> u64 {
        match self.format {
            Format::JsonLines => self.lines,
            // The first line has the names.
            Format::Csv => self.lines.saturating_sub(1),
            Format::Parquet => footer(&self.tail).and_then(rows_of).unwrap_or(0),
        }
    }
}

/// The metadata at the end of a Parquet file: before its length, of four bytes, and the magic number.
fn footer(file: &[u8]) -> Option<&[u8]> {
    let rest = file.strip_suffix(b"PAR1")?;
    let (rest, length) = rest.split_last_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    rest.get(rest.len().checked_sub(length)?..)
}

/// Field 3 of Parquet's FileMetaData, in Thrift's compact protocol.
fn rows_of(metadata: &[u8]) -> Option<u64> {
    let mut thrift = Thrift { rest: metadata };
    let mut id = 0;
    loop {
        let (next, of) = thrift.field(id)?;
        id = next;
        if id == 3 {
            return u64::try_from(thrift.zigzag()?).ok();
        }
        thrift.skip(of, 0)?;
    }
}

/// A reader of Thrift's compact protocol, which knows how to step over what it is not asked for.
struct Thrift<'a> {
    rest: &'a [u8],
}

const STOP: u8 = 0;
/// Deeper than any metadata.
const DEEPEST: u32 = 16;

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The id and the type of the next field of a structure; nothing at its end.
    fn field(&mut self, last: i64) -> Option<(i64, u8)> {
        let header = self.byte()?;
        if header == STOP {
            return None;
        }
        let id = match header >> 4 {
            0 => self.zigzag()?,
            delta => last + i64::from(delta),
        };
        Some((id, header & 0x0f))
    }

    fn skip(&mut self, of: u8, depth: u32) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match of {
            // A boolean field is its type.
            1 | 2 => {}
            3 => _ = self.byte()?,
            4..=6 => _ = self.varint()?,
            7 => self.rest = self.rest.get(8..)?,
            8 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.rest = self.rest.get(length..)?;
            }
            9 | 10 => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                for _ in 0..count {
                    match header & 0x0f {
                        // In a list it has a byte of its own.
                        1 | 2 => _ = self.byte()?,
                        of => self.skip(of, depth + 1)?,
                    }
                }
            }
            12 => {
                while self.rest.first()? != &STOP {
                    let (_, of) = self.field(0)?;
                    self.skip(of, depth + 1)?;
                }
                self.byte()?;
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(format: Format, parts: &[&[u8]]) -> u64 {
        let mut rows = Rows::new(format);
        parts.iter().for_each(|part| rows.take(part));
        rows.count()
    }

    #[test]
    fn lines_are_rows_unless_they_are_in_quotes_or_names() {
        assert_eq!(count(Format::JsonLines, &[b"{}\n{", b"}\n"]), 2);
        assert_eq!(count(Format::Csv, &[]), 0);
        assert_eq!(count(Format::Csv, &[b"\"a\",\"b\"\n"]), 0);
        assert_eq!(count(Format::Csv, &[b"\"a\"\n\"x\ny\"", b"\"z\n\"\n1\n"]), 2);
    }

    #[test]
    fn the_rows_of_a_parquet_file_are_in_its_footer() {
        // Version 2; a schema of one element with a name and a number; 300 rows.
        let metadata = [0x15, 0x04, 0x19, 0x1c, 0x48, 0x01, b'a', 0x15, 0x02, 0x00, 0x16, 0xd8, 0x04, 0x00];
        let mut file = b"PAR1 and what is in it".to_vec();
        file.extend(metadata);
        file.extend((metadata.len() as u32).to_le_bytes());
        file.extend(b"PAR1");
        assert_eq!(count(Format::Parquet, &[&file]), 300);
        let (head, tail) = file.split_at(25);
        assert_eq!(count(Format::Parquet, &[head, tail]), 300);
        assert_eq!(count(Format::Parquet, &[head]), 0);
        for cut in 0..metadata.len() {
            // Whatever is there, it is read to its end and not beyond.
            let _ = rows_of(&metadata[..cut]);
        }
        assert_eq!(count(Format::Parquet, &[b"\xff\xff\xff\xffPAR1"]), 0);
    }
}
