//! PostgreSQL's text forms, read into the values that ClickHouse stores.
//!
//! The forms are those of a session with `DateStyle` ISO, `TimeZone` UTC, `bytea_output` hex and
//! `extra_float_digits` of at least 1. A value is read exactly or refused: ClickHouse takes some
//! values that a column can not hold without a word (it cuts a Decimal's digits off, and moves a
//! DateTime64 to the end of its range), so what it can not hold is found here.
//!
//! Errors name the reason and never the value.

mod address;
mod array;
mod decimal;
mod json;
mod number;
mod time;

pub use address::{ipv4, ipv6};
pub use array::{Element, array, vector};
pub use decimal::{clamped_decimal, decimal};
pub use json::json;
pub use number::{Integer, float32, float64, integer};
pub use time::{DateTimeRange, clamped_date, clamped_timestamp, date, time_of_day, timestamp};

/// A text form that gives no value for its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The bytes are no text form of the type.
    #[error("malformed value: {0}")]
    Malformed(&'static str),
    /// The value is a good one, but the column's type has no place for it.
    #[error("the column can not hold the value: {0}")]
    Unrepresentable(&'static str),
    /// NULL, for a column that takes none.
    #[error("the column takes no NULL")]
    Null,
}

/// Reads a bool: `t` or `f`.
#[inline]
pub fn boolean(text: &[u8]) -> Result<bool, ValueError> {
    match text {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => Err(ValueError::Malformed("a bool is t or f")),
    }
}

/// Reads a uuid into ClickHouse's layout: two little-endian 64-bit halves, the high one first.
pub fn uuid(text: &[u8]) -> Result<[u8; 16], ValueError> {
    const MALFORMED: ValueError = ValueError::Malformed("a uuid is 32 hexadecimal digits in groups of 8-4-4-4-12");
    let text: &[u8; 36] = text.try_into().map_err(|_| MALFORMED)?;
    let mut value = 0u128;
    for (at, &byte) in text.iter().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            if byte != b'-' {
                return Err(MALFORMED);
            }
            continue;
        }
        let nibble = NIBBLE[usize::from(byte)];
        if nibble == NO_NIBBLE {
            return Err(MALFORMED);
        }
        value = value << 4 | u128::from(nibble);
    }
    // Turning the halves around makes ClickHouse's order one little-endian number.
    Ok(value.rotate_left(64).to_le_bytes())
}

/// How many bytes a bytea's text stands for, if it is well formed.
pub fn bytea_len(text: &[u8]) -> Result<usize, ValueError> {
    Ok(bytea_digits(text)?.len() / 2)
}

/// Appends the bytes that a bytea's text stands for; `out` is as it was on error.
pub fn bytea(text: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let digits = bytea_digits(text)?;
    let before = out.len();
    // One look at the end instead of a branch for each byte: a bytea may be large.
    let mut seen = 0;
    out.extend(digits.chunks_exact(2).map(|pair| {
        let (high, low) = (NIBBLE[usize::from(pair[0])], NIBBLE[usize::from(pair[1])]);
        seen |= high | low;
        high << 4 | low
    }));
    if seen & NO_NIBBLE == NO_NIBBLE {
        out.truncate(before);
        return Err(ValueError::Malformed("a bytea has only hexadecimal digits"));
    }
    Ok(())
}

fn bytea_digits(text: &[u8]) -> Result<&[u8], ValueError> {
    text.strip_prefix(br"\x")
        .filter(|digits| digits.len().is_multiple_of(2))
        .ok_or(ValueError::Malformed(r"a bytea is \x and pairs of hexadecimal digits"))
}

/// What [`NIBBLE`] has for a byte that is no hexadecimal digit. Its bits are none of a nibble's.
const NO_NIBBLE: u8 = 0xf0;

const NIBBLE: [u8; 256] = {
    let mut table = [NO_NIBBLE; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u8;
        table[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bool_is_one_letter() {
        assert_eq!(boolean(b"t"), Ok(true));
        assert_eq!(boolean(b"f"), Ok(false));
        for text in ["", "true", "T", "1", "tt"] {
            assert!(matches!(boolean(text.as_bytes()), Err(ValueError::Malformed(_))), "{text:?}");
        }
    }

    #[test]
    fn a_uuid_has_its_high_half_first() {
        let expected = [0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88];
        assert_eq!(uuid(b"00112233-4455-6677-8899-aabbccddeeff"), Ok(expected));
        assert_eq!(uuid(b"00112233-4455-6677-8899-AABBCCDDEEFF"), Ok(expected));
    }

    #[test]
    fn what_is_no_uuid_is_refused() {
        for text in [
            "",
            "00112233445566778899aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeefg",
            "0011223344-55-6677-8899-aabbccddeeff",
            "00112233-4455-6677-8899-aabbccddeeff0",
        ] {
            assert!(matches!(uuid(text.as_bytes()), Err(ValueError::Malformed(_))), "{text:?}");
        }
    }

    #[test]
    fn every_byte_survives_a_bytea() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut out = b"before".to_vec();
        assert_eq!(bytea(format!(r"\x{text}").as_bytes(), &mut out), Ok(()));
        assert_eq!(out, [b"before".as_slice(), &bytes].concat());
        assert_eq!(bytea_len(br"\x"), Ok(0));
        assert_eq!(bytea(br"\x", &mut out), Ok(()));
        assert_eq!(out.len(), 6 + 256);
    }

    #[test]
    fn a_malformed_bytea_leaves_nothing_behind() {
        for text in ["", "\\", "ab", "\\x0", "\\x0g", "\\xg0", "\\X00", "\\x00\\x", "\\x00f\u{f0}"] {
            let mut out = vec![1];
            assert!(matches!(bytea(text.as_bytes(), &mut out), Err(ValueError::Malformed(_))), "{text:?}");
            assert_eq!(out, [1]);
        }
    }

    proptest! {
        #[test]
        fn any_bytea_comes_back(bytes: Vec<u8>) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = format!(r"\x{text}");
            let mut out = Vec::new();
            prop_assert_eq!(bytea_len(text.as_bytes()), Ok(bytes.len()));
            prop_assert_eq!(bytea(text.as_bytes(), &mut out), Ok(()));
            prop_assert_eq!(out, bytes);
        }

        #[test]
        fn any_uuid_comes_back(value: u128) {
            let bytes = uuid(uuid::Uuid::from_u128(value).to_string().as_bytes()).unwrap();
            let (high, low) = bytes.split_first_chunk::<8>().unwrap();
            let low: [u8; 8] = low.try_into().unwrap();
            prop_assert_eq!(u64::from_le_bytes(*high), (value >> 64) as u64);
            prop_assert_eq!(u64::from_le_bytes(low), value as u64);
        }

        #[test]
        fn no_bytes_make_a_reader_panic(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..50),
                proptest::collection::vec(proptest::sample::select(b"0123456789-+:. BCxTNaninfty\\".to_vec()), 0..50),
            ],
            precision in 1u8..=76,
            scale in 0u8..=76,
        ) {
            let text = bytes.as_slice();
            let mut out = Vec::new();
            let _ = (boolean(text), uuid(text), bytea_len(text), bytea(text, &mut out), date(text));
            let _ = (integer::<i16>(text), integer::<i64>(text), integer::<u64>(text));
            let _ = (float32(text), float64(text), decimal(text, precision, scale.min(precision)));
            let _ = (timestamp(text, DateTimeRange::Narrow, 6), timestamp(text, DateTimeRange::Wide, 0));
            let _ = (clamped_timestamp(text, DateTimeRange::Wide, 3), clamped_date(text), time_of_day(text));
            let _ = (clamped_decimal(text, precision, scale.min(precision)), ipv4(text), ipv6(text));
        }
    }
}
