use super::Meaning::{self, Malformed, Unheld, Value};
use std::cmp::Ordering;

/// The digits of an unsigned number and whether it had a minus sign.
fn signed(text: &[u8]) -> (bool, &[u8]) {
    text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits))
}

fn are_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

pub fn integer(text: &[u8], least: i128, most: i128, width: usize) -> Meaning {
    let (negative, digits) = signed(text);
    if !are_digits(digits) {
        return Malformed;
    }
    let mut value = 0_i128;
    for digit in digits {
        value = value * 10 + i128::from(digit - b'0');
        if value > 1 << 70 {
            return Unheld(None);
        }
    }
    let value = if negative { -value } else { value };
    if (least..=most).contains(&value) { Value(value.to_le_bytes()[..width].to_vec()) } else { Unheld(None) }
}

pub fn decimal(text: &[u8], precision: usize, scale: usize) -> Meaning {
    let (negative, unsigned) = signed(text);
    let width = [(9, 4), (18, 8), (38, 16), (76, 32)].iter().find(|(most, _)| precision <= *most).unwrap().1;
    let end = || Unheld(Some(two_complement(&vec![b'9'; precision], negative, width)));
    match text {
        b"NaN" => return Unheld(None),
        b"Infinity" | b"-Infinity" => return end(),
        _ => {}
    }
    let text = String::from_utf8_lossy(unsigned);
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    if !are_digits(whole.as_bytes()) || !(fraction.is_empty() || are_digits(fraction.as_bytes())) {
        return Malformed;
    }
    let whole = whole.trim_start_matches('0');
    if whole.len() > precision - scale {
        return end();
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > scale {
        return Unheld(None);
    }
    let digits = format!("{whole}{fraction:0<scale$}");
    Value(two_complement(digits.as_bytes(), negative, width))
}

/// A number in decimal digits, as bytes with the lowest first.
fn two_complement(digits: &[u8], negative: bool, width: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; width];
    for digit in digits {
        let mut carry = u16::from(digit - b'0');
        for byte in &mut bytes {
            let product = u16::from(*byte) * 10 + carry;
            (*byte, carry) = ((product & 0xff) as u8, product >> 8);
        }
        assert_eq!(carry, 0, "{width} bytes are enough");
    }
    if negative {
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(width);
        for (at, byte) in bytes.iter_mut().enumerate().skip(first) {
            *byte = if at == first { byte.wrapping_neg() } else { !*byte };
        }
    }
    bytes
}

pub fn float(text: &[u8], single: bool) -> Meaning {
    let of = |value: f64| if single { (value as f32).to_le_bytes().to_vec() } else { value.to_le_bytes().to_vec() };
    match text {
        b"NaN" => return Value(of(f64::NAN)),
        b"Infinity" => return Value(of(f64::INFINITY)),
        b"-Infinity" => return Value(of(f64::NEG_INFINITY)),
        _ => {}
    }
    let Some(exact) = Exact::of(text) else { return Malformed };
    let text = std::str::from_utf8(text).unwrap();
    let bits = if single {
        let value: f32 = text.parse().unwrap();
        exact.is_nearest(u64::from(value.to_bits() & 0x7fff_ffff), 23, 8);
        value.is_finite().then(|| value.to_le_bytes().to_vec())
    } else {
        let value: f64 = text.parse().unwrap();
        exact.is_nearest(value.to_bits() & (u64::MAX >> 1), 52, 11);
        value.is_finite().then(|| value.to_le_bytes().to_vec())
    };
    bits.map_or(Malformed, Value)
}

/// A number without its sign: digits, and the power of ten of the last one.
struct Exact {
    digits: Vec<u8>,
    exponent: i64,
}

impl Exact {
    /// Digits, perhaps a point with digits after it, perhaps an exponent. `None` for anything else.
    fn of(text: &[u8]) -> Option<Self> {
        let (_, unsigned) = signed(text);
        let text = std::str::from_utf8(unsigned).ok()?;
        let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if !are_digits(whole.as_bytes()) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let exponent = exponent.map_or(Some(0), |exponent| {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            are_digits(digits.as_bytes()).then(|| exponent.parse().unwrap_or(i64::MAX / 2))
        })?;
        let digits = format!("{whole}{fraction}").into_bytes();
        Some(Self { digits, exponent: exponent - fraction.len() as i64 })
    }

    /// Panics unless the number of these bits is the nearest one, of two equally near ones the even one.
    fn is_nearest(&self, bits: u64, mantissa_bits: u32, exponent_bits: u32) {
        let beyond = ((1_u64 << exponent_bits) - 1) << mantissa_bits;
        // Exact arithmetic is slow, and what is much longer than any float is left to the library.
        if self.digits.len() > 40 || self.exponent.abs() > 400 || bits > beyond {
            return;
        }
        let (mantissa, exponent) = (bits & ((1 << mantissa_bits) - 1), bits >> mantissa_bits);
        // The number is `mantissa` times 2 to the power of `power`.
        let mantissa = if exponent == 0 { mantissa } else { mantissa | 1 << mantissa_bits };
        let bias = (1_i64 << (exponent_bits - 1)) - 1 + i64::from(mantissa_bits);
        let power = exponent.max(1) as i64 - bias;
        let is_power_of_two = exponent > 1 && mantissa == 1 << mantissa_bits;
        // The halves of the ways to its neighbours, in quarters.
        let above = self.compare(4 * mantissa + 2, power - 2);
        let below = self.compare(4 * mantissa - mantissa.min(1) * if is_power_of_two { 1 } else { 2 }, power - 2);
        let even = mantissa % 2 == 0;
        if bits < beyond {
            assert!(above == Ordering::Less || even && above == Ordering::Equal, "too small a float");
        }
        assert!(mantissa == 0 || below == Ordering::Greater || even && below == Ordering::Equal, "too large a float");
    }

    /// How it compares to `factor` times 2 to the power of `power`.
    fn compare(&self, factor: u64, power: i64) -> Ordering {
        let mut this = Big::default();
        self.digits.iter().for_each(|digit| this.times_plus(10, u32::from(digit - b'0')));
        let mut other = Big::default();
        (0..64).rev().for_each(|bit| other.times_plus(2, (factor >> bit & 1) as u32));
        let (ten, two) = (self.exponent, power);
        (0..ten.max(0)).for_each(|_| this.times_plus(10, 0));
        (0..(-ten).max(0)).for_each(|_| other.times_plus(10, 0));
        (0..two.max(0)).for_each(|_| other.times_plus(2, 0));
        (0..(-two).max(0)).for_each(|_| this.times_plus(2, 0));
        this.cmp(&other)
    }
}

/// A whole number of any size, with its lowest part first and no zero at its end.
#[derive(Default, PartialEq, Eq)]
struct Big(Vec<u32>);

impl Big {
    fn times_plus(&mut self, factor: u32, more: u32) {
        let mut carry = u64::from(more);
        for part in &mut self.0 {
            let product = u64::from(*part) * u64::from(factor) + carry;
            (*part, carry) = (product as u32, product >> 32);
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}
