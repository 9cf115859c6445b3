//! LowCardinality in the Native format: the distinct values once, and an index for each row.
//!
//! Over HTTP each block brings its whole dictionary. What is written is: as a prefix the version of
//! the keys' serialization (1), which inside of an array comes before the array's offsets; and if
//! there is any row, a word of flags with the width of the indexes, the number of keys, the keys
//! as Strings, the number of rows, and the indexes. For a nullable column the keys are plain
//! Strings as well, and the first of them stands for NULL.

use super::{Column, places::take_value};
use std::collections::HashMap;

const KEYS_VERSION: u64 = 1;
/// The block brings keys of its own.
const HAS_ADDITIONAL_KEYS: u64 = 1 << 9;
const EMPTY_STRING: &[u8] = &[0];

pub(super) fn write_prefix(out: &mut Vec<u8>) {
    push(out, KEYS_VERSION);
}

pub(super) fn write(column: &Column, out: &mut Vec<u8>) {
    if column.rows == 0 {
        return;
    }
    // Keys are taken from the column with their length before them, as they are written.
    let mut keys: Vec<&[u8]> = Vec::new();
    let mut known: HashMap<&[u8], u64> = HashMap::new();
    if column.nulls.is_some() {
        keys.push(EMPTY_STRING);
    }
    let mut rest = column.data.as_slice();
    let indexes: Vec<u64> = (0..column.rows)
        .map(|row| {
            let value = take_value(&mut rest);
            if column.null(row) == 1 {
                return 0;
            }
            *known.entry(value).or_insert_with(|| {
                keys.push(value);
                keys.len() as u64 - 1
            })
        })
        .collect();

    let width: usize = match keys.len() {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        0x1_0001..=0x1_0000_0000 => 4,
        _ => 8,
    };
    push(out, HAS_ADDITIONAL_KEYS | u64::from(width.trailing_zeros()));
    push(out, keys.len() as u64);
    keys.iter().for_each(|key| out.extend_from_slice(key));
    push(out, indexes.len() as u64);
    indexes.iter().for_each(|index| out.extend_from_slice(&index.to_le_bytes()[..width]));
}

fn push(out: &mut Vec<u8>, word: u64) {
    out.extend_from_slice(&word.to_le_bytes());
}
