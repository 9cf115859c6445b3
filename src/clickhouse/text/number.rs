use super::ValueError;

/// An integer type that [`integer`] reads.
pub trait Integer: TryFrom<i128> + TryFrom<i64> {}

impl Integer for i16 {}
impl Integer for i32 {}
impl Integer for i64 {}
impl Integer for u32 {}
impl Integer for u64 {}

/// Reads an integer: digits, with a minus sign before them where it is negative.
#[inline]
pub fn integer<T: Integer>(text: &[u8]) -> Result<T, ValueError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    // Most are short: so many digits fit into 64 bits.
    if (1..=18).contains(&digits.len()) {
        let (value, is_number) = short(digits);
        let value = if negative { -value } else { value };
        return if is_number { T::try_from(value).map_err(|_| OUT_OF_RANGE) } else { Err(MALFORMED) };
    }
    let magnitude = i128::from(magnitude(digits)?);
    T::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| OUT_OF_RANGE)
}

const MALFORMED: ValueError = ValueError::Malformed("an integer is digits, perhaps after a minus sign");
const OUT_OF_RANGE: ValueError = ValueError::Unrepresentable("the integer is out of the type's range");

/// The number that up to eighteen digits make, and whether they all are digits.
#[inline]
pub(super) fn short(digits: &[u8]) -> (i64, bool) {
    let mut highest = 0;
    let value = digits.iter().fold(0_i64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        highest = digit.max(highest);
        value.wrapping_mul(10).wrapping_add(i64::from(digit))
    });
    (value, highest <= 9)
}

#[inline]
fn magnitude(digits: &[u8]) -> Result<u64, ValueError> {
    if digits.is_empty() {
        return Err(MALFORMED);
    }
    let mut value = 0u64;
    let mut overflow = false;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(MALFORMED);
        }
        match value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit))) {
            Some(next) => value = next,
            // Read on: what follows may not even be a digit.
            None => overflow = true,
        }
    }
    if overflow { Err(OUT_OF_RANGE) } else { Ok(value) }
}

/// Reads a float4. PostgreSQL prints the shortest text that reads back as the same value.
pub fn float32(text: &[u8]) -> Result<f32, ValueError> {
    match text {
        b"NaN" => Ok(f32::NAN),
        b"Infinity" => Ok(f32::INFINITY),
        b"-Infinity" => Ok(f32::NEG_INFINITY),
        _ => finite(text)?.parse().ok().filter(|value: &f32| value.is_finite()).ok_or(NO_FLOAT),
    }
}

/// Reads a float8. PostgreSQL prints the shortest text that reads back as the same value.
pub fn float64(text: &[u8]) -> Result<f64, ValueError> {
    match text {
        b"NaN" => Ok(f64::NAN),
        b"Infinity" => Ok(f64::INFINITY),
        b"-Infinity" => Ok(f64::NEG_INFINITY),
        _ => finite(text)?.parse().ok().filter(|value: &f64| value.is_finite()).ok_or(NO_FLOAT),
    }
}

const NO_FLOAT: ValueError = ValueError::Malformed("a float is a decimal number, NaN or Infinity");

/// `str::parse` takes more than PostgreSQL prints (`inf`, `+1`, `.5`).
fn finite(text: &[u8]) -> Result<&str, ValueError> {
    match text {
        [b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..] => std::str::from_utf8(text).map_err(|_| NO_FLOAT),
        _ => Err(NO_FLOAT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ends_of_each_integer_type_fit_and_one_more_does_not() {
        assert_eq!(integer::<i16>(b"-32768"), Ok(i16::MIN));
        assert_eq!(integer::<i16>(b"32768"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<i32>(b"2147483647"), Ok(i32::MAX));
        assert_eq!(integer::<i32>(b"-2147483649"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<i64>(b"-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer::<i64>(b"9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer::<i64>(b"9223372036854775808"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<i64>(b"-9223372036854775809"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<u32>(b"4294967295"), Ok(u32::MAX));
        assert_eq!(integer::<u32>(b"-1"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<u64>(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(integer::<u64>(b"18446744073709551616"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<u64>(b"99999999999999999999999999"), Err(OUT_OF_RANGE));
        assert_eq!(integer::<i16>(b"0000000000000000000000000007"), Ok(7));
    }

    #[test]
    fn what_is_no_integer_is_refused() {
        for text in ["", "-", "+1", "--1", "1-", "1.0", " 1", "1 ", "0x1", "99999999999999999999x", "\u{661}"] {
            assert_eq!(integer::<i64>(text.as_bytes()), Err(MALFORMED), "{text:?}");
        }
    }

    #[test]
    fn floats_keep_their_bits() {
        for text in ["0", "-0", "1.5", "1e+308", "5e-324", "1.7976931348623157e+308", "0.1", "123456789012345680"] {
            let expected: f64 = text.parse().unwrap();
            assert_eq!(float64(text.as_bytes()).map(f64::to_bits), Ok(expected.to_bits()), "{text}");
        }
        for text in ["-0", "3.4028235e+38", "1e-45", "0.1", "16777216"] {
            let expected: f32 = text.parse().unwrap();
            assert_eq!(float32(text.as_bytes()).map(f32::to_bits), Ok(expected.to_bits()), "{text}");
        }
        assert!(float64(b"NaN").unwrap().is_nan());
        assert!(float32(b"NaN").unwrap().is_nan());
        assert_eq!(float64(b"Infinity"), Ok(f64::INFINITY));
        assert_eq!(float32(b"-Infinity"), Ok(f32::NEG_INFINITY));
    }

    #[test]
    fn what_postgresql_never_prints_is_no_float() {
        for text in ["", "inf", "nan", "+1", ".5", "-.5", "-", "1e", "1e999", "infinity", "-NaN", "1 ", "1\u{661}"] {
            assert_eq!(float64(text.as_bytes()), Err(NO_FLOAT), "{text:?}");
            assert_eq!(float32(text.as_bytes()), Err(NO_FLOAT), "{text:?}");
        }
        assert_eq!(float64(b"1\xff"), Err(NO_FLOAT));
    }

    proptest! {
        #[test]
        fn any_integer_comes_back(signed: i64, unsigned: u64, small: i16) {
            prop_assert_eq!(integer(signed.to_string().as_bytes()), Ok(signed));
            prop_assert_eq!(integer(unsigned.to_string().as_bytes()), Ok(unsigned));
            prop_assert_eq!(integer(small.to_string().as_bytes()), Ok(small));
        }

        #[test]
        fn any_finite_float_comes_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(float64(format!("{value:e}").as_bytes()).map(f64::to_bits), Ok(bits));
            prop_assert_eq!(float64(format!("{value}").as_bytes()).map(f64::to_bits), Ok(bits));
        }
    }
}
