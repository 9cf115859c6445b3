//! Arrays: `{1,NULL,"a \"b\""}`, nested, and with their lower bounds where those are not 1.
//!
//! Source: PostgreSQL's documentation of arrays, "Array Input and Output Syntax". What is read is
//! what the server prints: no blanks, and `NULL` in no other way.

use super::ValueError;

const MALFORMED: ValueError = ValueError::Malformed("an array is elements with commas between them, in braces");
const MALFORMED_VECTOR: ValueError = ValueError::Malformed("a vector is numbers with commas between them, in brackets");
const OTHER_BOUNDS: ValueError = ValueError::Unrepresentable("an array whose lower bound is not 1");

/// What an array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element<'a> {
    /// SQL NULL.
    Null,
    /// A value in its text form.
    Text(&'a [u8]),
    /// An array of one rank less, in its text form.
    Array(&'a [u8]),
}

/// Gives each element of the outermost level to `each`, in order.
///
/// # Errors
/// What `each` refuses; a text that is no array; lower bounds other than 1, for which ClickHouse has
/// no place.
pub fn array(text: &[u8], mut each: impl FnMut(Element<'_>) -> Result<(), ValueError>) -> Result<(), ValueError> {
    let mut rest = without_bounds(text)?.strip_prefix(b"{").ok_or(MALFORMED)?;
    if rest == b"}" {
        return Ok(());
    }
    let mut unescaped = Vec::new();
    loop {
        rest = match rest {
            [b'"', inside @ ..] => {
                let (element, rest) = quoted(inside, &mut unescaped)?;
                each(Element::Text(element.unwrap_or(&unescaped)))?;
                rest
            }
            [b'{', ..] => {
                let (element, rest) = rest.split_at(nested_len(rest)?);
                each(Element::Array(element))?;
                rest
            }
            _ => {
                let (element, rest) = rest.split_at(plain_len(rest)?);
                each(if element == b"NULL" { Element::Null } else { Element::Text(element) })?;
                rest
            }
        };
        match rest {
            [b',', after @ ..] => rest = after,
            b"}" => return Ok(()),
            _ => return Err(MALFORMED),
        }
    }
}

/// Gives each number of a vector of pgvector to `each`: `[1,2.5]`.
///
/// # Errors
/// What `each` refuses; a text that is no vector.
pub fn vector(text: &[u8], each: impl FnMut(&[u8]) -> Result<(), ValueError>) -> Result<(), ValueError> {
    let numbers = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).ok_or(MALFORMED_VECTOR)?;
    numbers.split(|&byte| byte == b',').try_for_each(each)
}

/// Takes `[1:2][1:3]=` off, which is only printed where some dimension does not begin at 1.
fn without_bounds(text: &[u8]) -> Result<&[u8], ValueError> {
    if text.first() != Some(&b'[') {
        return Ok(text);
    }
    let end = text.iter().position(|&byte| byte == b'=').ok_or(MALFORMED)?;
    let bounds = std::str::from_utf8(&text[..end]).map_err(|_| MALFORMED)?;
    let mut lower = Vec::new();
    for bound in bounds.split_inclusive(']') {
        let (low, high) = bound
            .strip_prefix('[')
            .and_then(|bound| bound.strip_suffix(']'))
            .and_then(|bound| bound.split_once(':'))
            .ok_or(MALFORMED)?;
        high.parse::<i32>().map_err(|_| MALFORMED)?;
        lower.push(low.parse::<i32>().map_err(|_| MALFORMED)?);
    }
    if lower.iter().all(|&low| low == 1) { Ok(&text[end + 1..]) } else { Err(OTHER_BOUNDS) }
}

/// The element that ends at the next quote, and what comes after that. `None` is what was put into
/// `unescaped`.
fn quoted<'a>(text: &'a [u8], unescaped: &mut Vec<u8>) -> Result<(Option<&'a [u8]>, &'a [u8]), ValueError> {
    let special = |text: &[u8]| text.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(MALFORMED);
    let first = special(text)?;
    if text[first] == b'"' {
        return Ok((Some(&text[..first]), &text[first + 1..]));
    }
    unescaped.clear();
    let mut rest = text;
    loop {
        let at = special(rest)?;
        unescaped.extend_from_slice(&rest[..at]);
        if rest[at] == b'"' {
            return Ok((None, &rest[at + 1..]));
        }
        unescaped.push(*rest.get(at + 1).ok_or(MALFORMED)?);
        rest = &rest[at + 2..];
    }
}

/// How far an element without quotes goes. Whatever is not plain would have been quoted.
fn plain_len(text: &[u8]) -> Result<usize, ValueError> {
    let end = text.iter().position(|byte| matches!(byte, b',' | b'{' | b'}' | b'"' | b'\\')).ok_or(MALFORMED)?;
    if end == 0 || !matches!(text[end], b',' | b'}') { Err(MALFORMED) } else { Ok(end) }
}

/// How far an array inside an array goes, from its opening brace to its closing one.
fn nested_len(text: &[u8]) -> Result<usize, ValueError> {
    let (mut depth, mut inside_quotes, mut escaped) = (0_usize, false, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => inside_quotes = !inside_quotes,
            b'{' if !inside_quotes => depth += 1,
            b'}' if !inside_quotes => {
                depth -= 1;
                if depth == 0 {
                    return Ok(at + 1);
                }
            }
            _ => {}
        }
    }
    Err(MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An array as it was read, a level at a time.
    #[derive(Clone, Debug, PartialEq)]
    enum Tree {
        Null,
        Text(Vec<u8>),
        Array(Vec<Tree>),
    }

    fn read(text: &[u8]) -> Result<Tree, ValueError> {
        let mut elements = Vec::new();
        array(text, |element| {
            elements.push(match element {
                Element::Null => Tree::Null,
                Element::Text(text) => Tree::Text(text.to_vec()),
                Element::Array(text) => read(text)?,
            });
            Ok(())
        })?;
        Ok(Tree::Array(elements))
    }

    fn texts(texts: &[&str]) -> Tree {
        Tree::Array(texts.iter().map(|text| Tree::Text(text.as_bytes().to_vec())).collect())
    }

    /// As PostgreSQL prints it.
    fn print(tree: &Tree, out: &mut Vec<u8>) {
        match tree {
            Tree::Null => out.extend_from_slice(b"NULL"),
            Tree::Text(text) => {
                let special = |byte: &u8| b"{},\"\\ \t\n\r\x0b\x0c".contains(byte);
                if !text.is_empty() && !text.iter().any(special) && !text.eq_ignore_ascii_case(b"null") {
                    return out.extend_from_slice(text);
                }
                out.push(b'"');
                for &byte in text {
                    if matches!(byte, b'"' | b'\\') {
                        out.push(b'\\');
                    }
                    out.push(byte);
                }
                out.push(b'"');
            }
            Tree::Array(elements) => {
                out.push(b'{');
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    print(element, out);
                }
                out.push(b'}');
            }
        }
    }

    #[test]
    fn elements_are_plain_quoted_or_null() {
        assert_eq!(read(b"{}"), Ok(texts(&[])));
        assert_eq!(read(b"{1,-2,3.5}"), Ok(texts(&["1", "-2", "3.5"])));
        assert_eq!(
            read(br#"{"","a,b","{x}","\"","\\","NULL",null,"a\\\"b"}"#),
            Ok(texts(&["", "a,b", "{x}", "\"", "\\", "NULL", "null", "a\\\"b"]))
        );
        assert_eq!(read(b"{NULL,x}"), Ok(Tree::Array(vec![Tree::Null, Tree::Text(b"x".to_vec())])));
    }

    #[test]
    fn arrays_nest() {
        let expected = Tree::Array(vec![texts(&["a", "}{\""]), texts(&["c", ""])]);
        assert_eq!(read(br#"{{a,"}{\""},{c,""}}"#), Ok(expected));
    }

    #[test]
    fn only_lower_bounds_of_one_can_be_held() {
        assert_eq!(read(b"[1:2]={5,6}"), Ok(texts(&["5", "6"])));
        for text in [&b"[0:1]={5,6}"[..], b"[-3:-3]={1}", b"[1:1][2:3]={{1,2}}"] {
            assert_eq!(read(text), Err(OTHER_BOUNDS));
        }
    }

    #[test]
    fn what_is_no_array_is_malformed() {
        for text in [
            "",
            "{",
            "}",
            "{}}",
            "1",
            "{1",
            "{1,}",
            "{,1}",
            "{1}2",
            "{\"a}",
            "{\"a\"b}",
            "{a\"b}",
            "{a\\b}",
            "{\"a\\",
            "{{1}",
            "{{1}1}",
            "[1:2]",
            "[1]={1}",
            "[:]={1}",
            "[1:2={1}",
            "[1:a]={1}",
            "{1}{2}",
        ] {
            assert_eq!(read(text.as_bytes()), Err(MALFORMED), "{text}");
        }
    }

    #[test]
    fn a_vector_is_numbers_in_brackets() {
        let read = |text: &str| {
            let mut numbers = Vec::new();
            let done = vector(text.as_bytes(), |number| {
                numbers.push(String::from_utf8_lossy(number).into_owned());
                super::super::float32(number).map(|_| ())
            });
            done.map(|()| numbers)
        };
        assert_eq!(read("[1,-2.5,1e-07]"), Ok(["1", "-2.5", "1e-07"].map(str::to_owned).to_vec()));
        for text in ["", "[", "[]", "[1,]", "{1}", "[1", "1]", "[a]"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let element = prop_oneof![
            1 => Just(Tree::Null),
            5 => proptest::collection::vec(proptest::sample::select(b"ab,{}\"\\ NUL\n".to_vec()), 0..5).prop_map(Tree::Text),
        ];
        let level = |inner: BoxedStrategy<Tree>| proptest::collection::vec(inner, 1..4).prop_map(Tree::Array).boxed();
        let one = level(element.boxed());
        let two = level(one.clone());
        prop_oneof![one, two.clone(), level(two)]
    }

    proptest! {
        #[test]
        fn any_array_comes_back(tree in trees()) {
            let mut text = Vec::new();
            print(&tree, &mut text);
            prop_assert_eq!(read(&text), Ok(tree));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::sample::select(b"{}[]:=,\"\\1aNUL".to_vec()), 0..20)) {
            let _ = read(&bytes);
            let _ = vector(&bytes, |_| Ok(()));
        }
    }
}
