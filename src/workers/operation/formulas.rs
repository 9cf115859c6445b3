//! Text that a spreadsheet would take for a formula, in a CSV file that is on its way.
//!
//! Whoever opens such a file in a spreadsheet runs what a cell that begins with `=`, `+`, `-` or `@` says, and the text of a cell
//! may come from anybody: a customer's name, a note. An apostrophe in front makes it text again. It changes the value, so it is
//! only put there where the configuration asks for it, and never before a number: ClickHouse quotes text, and leaves numbers bare.

use bytes::Bytes;

/// What a formula begins with, or what a spreadsheet skips before it.
const FIRST: &[u8] = b"=+-@\t\r\n";

/// Puts the apostrophes, wherever the pieces of the file begin and end.
#[derive(Debug, Default)]
pub(super) struct Escaping {
    at: At,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Where a cell begins.
    #[default]
    Cell,
    /// Behind the quote that begins one.
    Text,
    Quoted,
    /// Behind a quote in it, which ends it unless it is doubled.
    Quote,
    Bare,
}

impl Escaping {
    /// What comes next.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 16);
        for &byte in bytes {
            if self.at == At::Text && FIRST.contains(&byte) {
                out.push(b'\'');
            }
            out.push(byte);
            self.at = match (self.at, byte) {
                (At::Cell, b'"') => At::Text,
                (At::Text | At::Quoted, b'"') => At::Quote,
                (At::Text | At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
                (At::Cell | At::Quote | At::Bare, b',' | b'\n') => At::Cell,
                (At::Cell | At::Quote | At::Bare, _) => At::Bare,
            };
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(
        "\"name\",\"amount\",\"-odd\"\n",
        "\"=1+1\",-5,\"a=1\"\n",
        "\"\"\"=x\",-0.5,\"@SUM(A1)\"\n",
        "\"a,\n\"\",=b\",\\N,\"\"\n",
        "\"+49 30\",7,\"\t=x\"\n",
    );
    const ESCAPED: &str = concat!(
        "\"name\",\"amount\",\"'-odd\"\n",
        "\"'=1+1\",-5,\"a=1\"\n",
        "\"\"\"=x\",-0.5,\"'@SUM(A1)\"\n",
        "\"a,\n\"\",=b\",\\N,\"\"\n",
        "\"'+49 30\",7,\"'\t=x\"\n",
    );

    #[test]
    fn text_that_would_be_a_formula_is_text_and_numbers_stay_as_they_are() {
        for size in 1..FILE.len() {
            let mut escaping = Escaping::default();
            let out: Vec<u8> = FILE.as_bytes().chunks(size).flat_map(|piece| escaping.take(piece)).collect();
            assert_eq!(String::from_utf8(out).unwrap(), ESCAPED, "in pieces of {size}");
        }
    }
}
