use super::{ValueError, number};

const MALFORMED: ValueError = ValueError::Malformed("a numeric is digits, perhaps with a minus sign and a point");

const INFINITE: ValueError = ValueError::Unrepresentable("a Decimal has no infinity");
const TOO_LARGE: ValueError =
    ValueError::Unrepresentable("the number has more digits before its point than the Decimal");

/// As [`decimal`], with the nearer end of the Decimal's range for a number outside of it. A number
/// between two that it has is not outside, and a NaN has no nearer end.
pub fn clamped_decimal(text: &[u8], precision: u8, scale: u8) -> Result<[u64; 4], ValueError> {
    match decimal(text, precision, scale) {
        Err(INFINITE | TOO_LARGE) => {
            let mut number = Wide::default();
            (0..precision).for_each(|_| number.push(9));
            Ok(number.finish(text.first() == Some(&b'-')))
        }
        read => read,
    }
}

/// Reads a numeric as ClickHouse's `Decimal(precision, scale)`: the number without its point, in
/// two's complement, the lowest 64 bits first. All 256 bits are given; a Decimal of up to 9, 18
/// or 38 digits is the first 32, 64 or 128 of them.
///
/// `precision` is at most 76 and `scale` at most `precision`.
pub fn decimal(text: &[u8], precision: u8, scale: u8) -> Result<[u64; 4], ValueError> {
    debug_assert!(precision <= 76 && scale <= precision);
    if let Some(number) = short(text, precision, scale) {
        let sign = (number >> 63) as u64;
        return Ok([number as u64, sign, sign, sign]);
    }
    let (negative, unsigned) = match text {
        b"NaN" => return Err(ValueError::Unrepresentable("a Decimal has no NaN")),
        b"Infinity" | b"-Infinity" => return Err(INFINITE),
        [b'-', unsigned @ ..] => (true, unsigned),
        unsigned => (false, unsigned),
    };
    let (whole, fraction) = match unsigned.iter().position(|&byte| byte == b'.') {
        Some(point) => (&unsigned[..point], &unsigned[point + 1..]),
        None => (unsigned, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err(MALFORMED);
    }
    let zeros = whole.iter().take_while(|&&digit| digit == b'0').count();
    let whole = &whole[zeros..];
    if whole.len() > usize::from(precision.saturating_sub(scale)) {
        return Err(TOO_LARGE);
    }
    let scale = usize::from(scale);
    let (kept, beyond) = fraction.split_at(fraction.len().min(scale));
    if beyond.iter().any(|&digit| digit != b'0') {
        return Err(ValueError::Unrepresentable("the number has more digits after its point than the Decimal"));
    }

    let mut number = Wide::default();
    let padding = std::iter::repeat_n(&b'0', scale - kept.len());
    for &digit in whole.iter().chain(kept).chain(padding) {
        number.push(digit - b'0');
    }
    Ok(number.finish(negative))
}

/// A number that needs no more than 64 bits, which is most of them; `None` where more has to be looked
/// at, errors among it.
#[inline]
fn short(text: &[u8], precision: u8, scale: u8) -> Option<i64> {
    let (negative, unsigned) = match text {
        [b'-', unsigned @ ..] => (true, unsigned),
        unsigned => (false, unsigned),
    };
    let point = unsigned.iter().position(|&byte| byte == b'.').unwrap_or(unsigned.len());
    let (whole, fraction) = (&unsigned[..point], unsigned.get(point + 1..).unwrap_or_default());
    let scale = usize::from(scale);
    let padding = scale.checked_sub(fraction.len())?;
    if whole.is_empty() || whole.len() + scale > usize::from(precision).min(18) {
        return None;
    }
    let ((whole, is_number), (fraction, is_fraction)) = (number::short(whole), number::short(fraction));
    if !is_number || !is_fraction {
        return None;
    }
    let magnitude = whole * power_of_ten(scale) + fraction * power_of_ten(padding);
    Some(if negative { -magnitude } else { magnitude })
}

/// Of an exponent of up to 18.
#[inline]
fn power_of_ten(exponent: usize) -> i64 {
    const POWERS: [i64; 19] = {
        let mut powers = [1; 19];
        let mut exponent = 1;
        while exponent < 19 {
            powers[exponent] = powers[exponent - 1] * 10;
            exponent += 1;
        }
        powers
    };
    POWERS[exponent]
}

/// A 256-bit number that grows digit by digit, in chunks that one 64-bit number holds.
#[derive(Default)]
struct Wide {
    limbs: [u64; 4],
    chunk: u64,
    /// Digits in `chunk`: at most 19, so that neither it nor ten to that power overflows.
    digits: u32,
}

impl Wide {
    #[inline]
    fn push(&mut self, digit: u8) {
        if self.digits == 19 {
            self.flush();
        }
        self.chunk = self.chunk * 10 + u64::from(digit);
        self.digits += 1;
    }

    /// 76 digits are less than 2^253, so nothing is ever carried out of the last limb.
    fn flush(&mut self) {
        let factor = u128::from(10u64.pow(self.digits));
        let mut carry = u128::from(self.chunk);
        for limb in &mut self.limbs {
            let product = u128::from(*limb) * factor + carry;
            *limb = product as u64;
            carry = product >> 64;
        }
        (self.chunk, self.digits) = (0, 0);
    }

    fn finish(mut self, negative: bool) -> [u64; 4] {
        self.flush();
        if negative {
            let mut carry = true;
            for limb in &mut self.limbs {
                (*limb, carry) = (!*limb).overflowing_add(u64::from(carry));
            }
        }
        self.limbs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The number's digits, by long division: independent of how it was put together.
    fn digits(mut limbs: [u64; 4]) -> String {
        let negative = limbs[3] >> 63 == 1;
        if negative {
            // -x = !(x - 1)
            for limb in &mut limbs {
                let (less, borrow) = limb.overflowing_sub(1);
                *limb = less;
                if !borrow {
                    break;
                }
            }
            limbs = limbs.map(|limb| !limb);
        }
        let mut text = Vec::new();
        while limbs != [0; 4] {
            let mut rest = 0u128;
            for limb in limbs.iter_mut().rev() {
                let value = rest << 64 | u128::from(*limb);
                *limb = (value / 10) as u64;
                rest = value % 10;
            }
            text.push(char::from(b'0' + rest as u8));
        }
        if text.is_empty() {
            text.push('0');
        }
        if negative {
            text.push('-');
        }
        text.into_iter().rev().collect()
    }

    fn read(text: &str, precision: u8, scale: u8) -> Result<String, ValueError> {
        decimal(text.as_bytes(), precision, scale).map(digits)
    }

    fn unrepresentable(text: &str, precision: u8, scale: u8) -> bool {
        matches!(decimal(text.as_bytes(), precision, scale), Err(ValueError::Unrepresentable(_)))
    }

    #[test]
    fn a_numeric_is_its_digits_without_the_point() {
        for (text, precision, scale, expected) in [
            ("0", 1, 0, "0"),
            ("-0.00", 4, 2, "0"),
            ("12.34", 4, 2, "1234"),
            ("-12.34", 4, 2, "-1234"),
            ("12", 4, 2, "1200"),
            ("12.3", 4, 2, "1230"),
            ("12.3400", 4, 2, "1234"),
            ("12.", 4, 2, "1200"),
            ("0.12", 2, 2, "12"),
            ("0012.34", 4, 2, "1234"),
            ("9999999999.99999999", 18, 8, "999999999999999999"),
            ("-1", 76, 0, "-1"),
            ("1", 76, 75, &format!("1{}", "0".repeat(75))),
        ] {
            assert_eq!(read(text, precision, scale), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn seventy_six_digits_fit() {
        let nines = "9".repeat(76);
        assert_eq!(read(&nines, 76, 0), Ok(nines.clone()));
        assert_eq!(read(&format!("-{nines}"), 76, 0), Ok(format!("-{nines}")));
        assert_eq!(read(&format!("0.{nines}"), 76, 76), Ok(nines.clone()));
        assert_eq!(read(&format!("{}.{}", "9".repeat(38), "9".repeat(38)), 76, 38), Ok(nines.clone()));
        assert!(unrepresentable(&format!("{nines}0"), 76, 0));
    }

    #[test]
    fn a_narrow_decimal_is_sign_extended() {
        assert_eq!(decimal(b"-1.5", 9, 1), Ok([-15i64 as u64, u64::MAX, u64::MAX, u64::MAX]));
        assert_eq!(decimal(b"1.5", 9, 1), Ok([15, 0, 0, 0]));
        let lowest = decimal(format!("-{}", "9".repeat(38)).as_bytes(), 38, 0).unwrap();
        let low = u128::from(lowest[1]) << 64 | u128::from(lowest[0]);
        assert_eq!(low as i128, -(10i128.pow(38) - 1));
    }

    #[test]
    fn what_a_decimal_has_no_place_for_is_unrepresentable() {
        for text in ["NaN", "Infinity", "-Infinity", "100", "-100", "1.001", "0.001", "99.999"] {
            assert!(unrepresentable(text, 4, 2), "{text}");
        }
        assert!(unrepresentable("1", 2, 2));
    }

    #[test]
    fn a_number_outside_of_the_range_is_clamped_to_its_end_and_no_other() {
        let read = |text: &str| clamped_decimal(text.as_bytes(), 4, 2).map(digits);
        for (text, expected) in
            [("Infinity", "9999"), ("-Infinity", "-9999"), ("100", "9999"), ("-100.001", "-9999"), ("99.99", "9999")]
        {
            assert_eq!(read(text), Ok(expected.to_owned()), "{text}");
        }
        for text in ["NaN", "1.001", "0.001"] {
            assert!(matches!(read(text), Err(ValueError::Unrepresentable(_))), "{text}");
        }
        assert_eq!(read("x"), Err(MALFORMED));
        assert_eq!(clamped_decimal(b"Infinity", 76, 0).map(digits), Ok("9".repeat(76)));
    }

    #[test]
    fn what_is_no_numeric_is_malformed() {
        for text in ["", "-", ".", "-.5", ".5", "1.2.3", "1e5", "+1", " 1", "1 ", "--1", "nan", "1,5", "0x1"] {
            assert_eq!(decimal(text.as_bytes(), 10, 2), Err(MALFORMED), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_decimal_comes_back(text in "(0|-?[1-9][0-9]{0,75})", scale in 0u8..=76) {
            let (sign, all) = text.strip_prefix('-').map_or(("", text.as_str()), |all| ("-", all));
            let padded = format!("{all:0>77}");
            let (whole, fraction) = padded.split_at(77 - usize::from(scale));
            let point = if scale == 0 { "" } else { "." };
            prop_assert_eq!(read(&format!("{sign}{whole}{point}{fraction}"), 76, scale), Ok(text.clone()));
        }

        #[test]
        fn a_decimal_agrees_with_machine_integers(value in -999_999_999_999_999_999i64..=999_999_999_999_999_999) {
            let limbs = decimal(value.to_string().as_bytes(), 18, 0).unwrap();
            prop_assert_eq!(limbs[0] as i64, value);
        }
    }
}
