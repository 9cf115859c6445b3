use super::super::{native::Cell, text::Kind};
use super::{Read, Refusal, read as read_value};
use walhouse::{clickhouse::types::ColumnType, config::Unrepresentable};

/// An array's text, one letter after another, as far as braces, quotes and commas go.
enum Tree {
    Null,
    Text(Vec<u8>),
    Array(Vec<Tree>),
}

pub fn read(kind: &Kind, text: &[u8]) -> Option<Result<Read, Refusal>> {
    if kind.ty == ColumnType::Vector {
        return Some(vector(kind, text));
    }
    let text = match bounds(text) {
        Ok(text) => text,
        Err(refusal) => return Some(decide(kind, Err(refusal))),
    };
    let mut letters = text.iter().copied().peekable();
    let tree = tree(&mut letters).filter(|tree| matches!(tree, Tree::Array(_)) && letters.next().is_none());
    match tree {
        Some(tree) => array(kind, &tree),
        // What stands before the place where it is malformed may be told instead.
        None if kind.policy == Unrepresentable::Null => None,
        None => Some(Err(Refusal::Malformed)),
    }
}

/// A list that can not be held has no nearer end.
fn decide(kind: &Kind, read: Result<Read, Refusal>) -> Result<Read, Refusal> {
    match read {
        Err(Refusal::Unheld) if kind.nullable && kind.policy == Unrepresentable::Null => {
            Ok(Read { value: Cell::Null, replaced: true })
        }
        other => other,
    }
}

fn array(kind: &Kind, tree: &Tree) -> Option<Result<Read, Refusal>> {
    let ColumnType::Array { element, nullable } = &kind.ty else { unreachable!("it is an array") };
    let Tree::Array(items) = tree else { return Some(decide(kind, Err(Refusal::Unheld))) };
    let of = Kind { ty: (**element).clone(), nullable: *nullable, ..kind.clone() };
    let nested = matches!(of.ty, ColumnType::Array { .. });
    let (mut cells, mut replaced) = (Vec::new(), false);
    for item in items {
        let read = match item {
            Tree::Null if of.nullable => Ok(Read { value: Cell::Null, replaced: false }),
            Tree::Array(_) if nested => array(&of, item)?,
            Tree::Text(text) if !nested => read_value(&of, text)?,
            _ => Err(Refusal::Unheld),
        };
        match read {
            Ok(read) => {
                replaced |= read.replaced;
                cells.push(read.value);
            }
            Err(refusal) => return Some(decide(kind, Err(refusal))),
        }
    }
    Some(Ok(Read { value: Cell::Array(cells), replaced }))
}

fn vector(kind: &Kind, text: &[u8]) -> Result<Read, Refusal> {
    let inside = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).ok_or(Refusal::Malformed)?;
    let of = Kind { ty: ColumnType::Float32, nullable: false, ..kind.clone() };
    let numbers = inside.split(|&byte| byte == b',').map(|number| {
        let read = read_value(&of, number).expect("a number is always one or none")?;
        Ok(read.value)
    });
    Ok(Read { value: Cell::Array(numbers.collect::<Result<_, _>>()?), replaced: false })
}

/// What comes after `[1:2][1:3]=`.
fn bounds(text: &[u8]) -> Result<&[u8], Refusal> {
    if text.first() != Some(&b'[') {
        return Ok(text);
    }
    let end = text.iter().position(|&byte| byte == b'=').ok_or(Refusal::Malformed)?;
    let inside = std::str::from_utf8(&text[..end]).map_err(|_| Refusal::Malformed)?;
    let inside = inside.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')).ok_or(Refusal::Malformed)?;
    let mut others = false;
    for bound in inside.split("][") {
        let (low, high) = bound.split_once(':').ok_or(Refusal::Malformed)?;
        let number = |text: &str| text.parse::<i32>().map_err(|_| Refusal::Malformed);
        number(high)?;
        others |= number(low)? != 1;
    }
    if others { Err(Refusal::Unheld) } else { Ok(&text[end + 1..]) }
}

fn tree(letters: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Option<Tree> {
    match letters.peek()? {
        b'{' => {
            letters.next();
            let mut items = Vec::new();
            if letters.next_if_eq(&b'}').is_some() {
                return Some(Tree::Array(items));
            }
            loop {
                items.push(tree(letters)?);
                match letters.next()? {
                    b',' => {}
                    b'}' => return Some(Tree::Array(items)),
                    _ => return None,
                }
            }
        }
        b'"' => {
            letters.next();
            let mut text = Vec::new();
            loop {
                match letters.next()? {
                    b'"' => return Some(Tree::Text(text)),
                    b'\\' => text.push(letters.next()?),
                    other => text.push(other),
                }
            }
        }
        _ => {
            let mut text = Vec::new();
            while let Some(letter) = letters.next_if(|letter| !b",{}\"\\".contains(letter)) {
                text.push(letter);
            }
            match text.as_slice() {
                b"" => None,
                b"NULL" => Some(Tree::Null),
                _ => Some(Tree::Text(text)),
            }
        }
    }
}
