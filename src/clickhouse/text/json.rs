//! Whether ClickHouse's JSON type takes a document, and keeps what it says.
//!
//! That type is a map of paths to values, and ClickHouse refuses a whole insert for one document that
//! it does not take. What it takes it stores without the order of keys, without keys whose value
//! is null or an empty object, and with numbers of 64 bits. The former is what the type is; a number
//! that would be rounded is refused here, like what the server would refuse.
//!
//! The document was checked by PostgreSQL, so its grammar is not checked again.

use super::ValueError;
use std::collections::{HashMap, HashSet};

const MALFORMED: ValueError = ValueError::Malformed("a JSON document that ends early");
const NO_OBJECT: ValueError = ValueError::Unrepresentable("a JSON document that is no object");
const TWICE: ValueError = ValueError::Unrepresentable("a JSON document that has a path twice");
const NUMBER: ValueError = ValueError::Unrepresentable("a JSON document with a number that 64 bits would round");
const SURROGATE: ValueError = ValueError::Unrepresentable("a JSON document with half of a surrogate pair");
const DEPTH: ValueError = ValueError::Unrepresentable("a JSON document that is nested too deeply");

/// ClickHouse's parser takes some more.
const MAX_DEPTH: usize = 500;

/// Checks a document for a JSON column.
pub fn json(text: &[u8]) -> Result<(), ValueError> {
    let mut scanner = Scanner { rest: text };
    if scanner.peek()? != b'{' {
        return Err(NO_OBJECT);
    }
    scanner.object(Paths::ROOT, &mut Paths::default(), 0)
}

/// The paths that have a value. As a tree, since a text for each would repeat a long key once for every value below it.
#[derive(Default)]
struct Paths {
    /// Where a key, or a part of it between dots, leads from a place in the tree.
    places: HashMap<(usize, Vec<u8>), usize>,
    /// The places that have a value.
    values: HashSet<usize>,
}

impl Paths {
    /// Where the path is empty.
    const ROOT: usize = 0;

    /// The place of a key below another one. A dot in it is as good as one between two keys.
    fn below(&mut self, place: usize, key: &[u8]) -> usize {
        // A path does not begin with a dot because its first key is empty.
        if place == Self::ROOT && key.is_empty() {
            return place;
        }
        key.split(|&byte| byte == b'.').fold(place, |place, part| {
            let next = self.places.len() + 1;
            *self.places.entry((place, part.to_vec())).or_insert(next)
        })
    }
}

struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    /// The next byte that is no blank, which stays where it is.
    fn peek(&mut self) -> Result<u8, ValueError> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied().ok_or(MALFORMED)
    }

    fn take(&mut self) -> Result<u8, ValueError> {
        let byte = self.peek()?;
        self.rest = &self.rest[1..];
        Ok(byte)
    }

    /// An object at `place`; `paths` has those of the values around it.
    fn object(&mut self, place: usize, paths: &mut Paths, depth: usize) -> Result<(), ValueError> {
        self.take()?;
        let mut keys = HashSet::new();
        while self.peek()? != b'}' {
            if self.peek()? == b',' {
                self.take()?;
                continue;
            }
            let key = self.string()?;
            let below = paths.below(place, &key);
            if !keys.insert(key) {
                return Err(TWICE);
            }
            self.take()?;
            self.value(below, paths, depth + 1)?;
        }
        self.take()?;
        Ok(())
    }

    fn value(&mut self, place: usize, paths: &mut Paths, depth: usize) -> Result<(), ValueError> {
        if depth > MAX_DEPTH {
            return Err(DEPTH);
        }
        let first = self.peek()?;
        if first == b'{' {
            return self.object(place, paths, depth);
        }
        if !paths.values.insert(place) {
            return Err(TWICE);
        }
        match first {
            b'[' => self.array(depth),
            b'"' => self.string().map(|_| ()),
            _ => self.word(),
        }
    }

    /// Objects in an array have paths of their own.
    fn array(&mut self, depth: usize) -> Result<(), ValueError> {
        self.take()?;
        while self.peek()? != b']' {
            if self.peek()? == b',' {
                self.take()?;
                continue;
            }
            self.value(Paths::ROOT, &mut Paths::default(), depth + 1)?;
        }
        self.take()?;
        Ok(())
    }

    /// The characters of a string.
    fn string(&mut self) -> Result<Vec<u8>, ValueError> {
        self.take()?;
        let (mut end, mut escaped) = (0, false);
        loop {
            match self.rest.get(end).ok_or(MALFORMED)? {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => break,
                _ => {}
            }
            end += 1;
        }
        let (inside, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        if !inside.contains(&b'\\') {
            return Ok(inside.to_vec());
        }
        let quoted = [b"\"", inside, b"\""].concat();
        // Its grammar is right, so only a surrogate can be wrong with it.
        serde_json::from_slice::<String>(&quoted).map(String::into_bytes).map_err(|_| SURROGATE)
    }

    /// A number, or true, false or null.
    fn word(&mut self) -> Result<(), ValueError> {
        let end = self.rest.iter().position(|byte| b",]} \t\r\n".contains(byte)).ok_or(MALFORMED)?;
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word.first().ok_or(MALFORMED)? {
            b't' | b'f' | b'n' => Ok(()),
            _ => number(std::str::from_utf8(word).map_err(|_| MALFORMED)?),
        }
    }
}

fn number(text: &str) -> Result<(), ValueError> {
    if !text.contains(['.', 'e', 'E']) {
        let fits = text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
        return fits.then_some(()).ok_or(NUMBER);
    }
    let value: f64 = text.parse().map_err(|_| MALFORMED)?;
    let same = value.is_finite() && digits(text) == digits(&format!("{value:e}"));
    same.then_some(()).ok_or(NUMBER)
}

/// The digits that a number consists of, and the power of ten of the last; without zeros at either
/// end, so that equal numbers have equal ones.
fn digits(text: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) =
        mantissa.trim_start_matches('-').split_once('.').unwrap_or((mantissa.trim_start_matches('-'), ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_end_matches('0');
    let shift = (all.len() - significant.len()) as i64 - fraction.len() as i64;
    let significant = significant.trim_start_matches('0');
    Some(if significant.is_empty() {
        (String::new(), 0)
    } else {
        (significant.to_owned(), exponent.checked_add(shift)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_object_whose_numbers_fit_is_taken() {
        for text in [
            "{}",
            r#" {"a" : {"b":[1,null,{"a":{"b":2}}], "c" : "x\"}"}, "d":true}"#,
            r#"{"n":[9223372036854775807,-9223372036854775808,18446744073709551615,0.1,-1.50e3,1e22,100e-2,0.0,-0]}"#,
            r#"{"a\u00e9":"\ud83d\ude00"}"#,
            r#"{"a":1,"a.":2,".a":3,".":4,"..":5,"":6,"b":{"c":1},"b.d":2}"#,
        ] {
            assert_eq!(json(text.as_bytes()), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_the_type_has_no_place_for_is_unrepresentable() {
        for (text, error) in [
            ("[1]", NO_OBJECT),
            ("null", NO_OBJECT),
            ("5", NO_OBJECT),
            (r#"{"a":1,"a":2}"#, TWICE),
            (r#"{"a":1,"\u0061":2}"#, TWICE),
            (r#"{"a.b":1,"a":{"b":2}}"#, TWICE),
            (r#"{"a":[{"b":1,"b":1}]}"#, TWICE),
            (r#"{"a":{"":1},"a.":2}"#, TWICE),
            (r#"{"":{"a":1},"a":2}"#, TWICE),
            (r#"{"a":18446744073709551616}"#, NUMBER),
            (r#"{"a":-9223372036854775809}"#, NUMBER),
            (r#"{"a":0.1234567890123456789}"#, NUMBER),
            (r#"{"a":1e400}"#, NUMBER),
            (r#"{"a":-1e-400}"#, NUMBER),
            (r#"{"a":9007199254740993.0}"#, NUMBER),
            (r#"{"a":"\ud800"}"#, SURROGATE),
        ] {
            assert_eq!(json(text.as_bytes()), Err(error), "{text}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(600), "}".repeat(600));
        assert_eq!(json(deep.as_bytes()), Err(DEPTH));
    }

    proptest! {
        #[test]
        fn any_double_is_taken_as_it_is_printed(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let documents = [format!("{{\"a\":{value:e}}}"), format!("{{\"a\":{value:?}}}")];
            for document in documents {
                prop_assert_eq!(json(document.as_bytes()), Ok(()));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::sample::select(b"{}[]:,\"\\u0d8e.-1 atn".to_vec()), 0..30)) {
            let _ = json(&bytes);
            let _ = json(&[b"{", bytes.as_slice()].concat());
        }
    }
}
