use super::ValueError;
use std::ops::Range;

/// What a server's DateTime64 can hold. Outside of it a value is stored and reads back as another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DateTimeRange {
    /// 1900-01-01 to the end of 2299-12-31: any server.
    #[default]
    Narrow,
    /// 0001-01-01 to the end of 9999-12-31: ClickHouse 26.7 and later. (It has a year 0 as well,
    /// which is PostgreSQL's 1 BC, but prints nothing that would tell.)
    ///
    /// Source: <https://github.com/ClickHouse/ClickHouse/pull/107907>.
    Wide,
}

impl DateTimeRange {
    /// The range of a server of this version.
    pub fn of_server(major: u32, minor: u32) -> Self {
        if (major, minor) >= (26, 7) { Self::Wide } else { Self::Narrow }
    }

    /// In seconds since 1970.
    fn seconds(self) -> Range<i64> {
        match self {
            Self::Narrow => -2_208_988_800..10_413_792_000,
            Self::Wide => -62_135_596_800..253_402_300_800,
        }
    }
}

/// What a Date32 can hold, in days since 1970: 1900-01-01 to 2299-12-31. Later servers show more,
/// but their own text forms and functions still end here.
const DATE32: Range<i64> = -25_567..120_530;

const MALFORMED_DATE: ValueError = ValueError::Malformed("a date is YYYY-MM-DD");
const MALFORMED: ValueError =
    ValueError::Malformed("a timestamp is YYYY-MM-DD HH:MM:SS and perhaps a fraction and an offset");

/// Reads a date as days since 1970-01-01, for a Date32.
pub fn date(text: &[u8]) -> Result<i32, ValueError> {
    if is_infinite(text) {
        return Err(ValueError::Unrepresentable("a Date32 has no infinity"));
    }
    let days = whole_date(text)?;
    if !DATE32.contains(&days) {
        return Err(ValueError::Unrepresentable("the date is outside of Date32's range, 1900-01-01 to 2299-12-31"));
    }
    Ok(days as i32)
}

/// As [`date`], with the nearer end of Date32's range for a date outside of it.
pub fn clamped_date(text: &[u8]) -> Result<i32, ValueError> {
    let days = match infinity(text) {
        Some(end) => end,
        None => whole_date(text)?,
    };
    Ok(days.clamp(DATE32.start, DATE32.end - 1) as i32)
}

/// Reads a timestamp, with an offset or without one (which then is UTC), in units of
/// 10<sup>-precision</sup> seconds since 1970-01-01 00:00:00 UTC, for a `DateTime64(precision)` of up
/// to 6 digits.
pub fn timestamp(text: &[u8], range: DateTimeRange, precision: u8) -> Result<i64, ValueError> {
    if is_infinite(text) {
        return Err(ValueError::Unrepresentable("a DateTime64 has no infinity"));
    }
    let (seconds, micros) = whole_timestamp(text)?;
    // Checked in seconds: PostgreSQL's last year in microseconds is close to the end of 64 bits.
    if !range.seconds().contains(&seconds) {
        return Err(ValueError::Unrepresentable("the timestamp is outside of DateTime64's range"));
    }
    units(seconds * MICROS + micros, precision)
}

/// As [`timestamp`], with the nearer end of DateTime64's range for a timestamp outside of it.
pub fn clamped_timestamp(text: &[u8], range: DateTimeRange, precision: u8) -> Result<i64, ValueError> {
    let (seconds, micros) = match infinity(text) {
        Some(end) => (end, 0),
        None => whole_timestamp(text)?,
    };
    let Range { start, end } = range.seconds();
    let units_of = |seconds: i64| seconds * 10_i64.pow(precision.into());
    if seconds < start {
        Ok(units_of(start))
    } else if seconds >= end {
        Ok(units_of(end) - 1)
    } else {
        units(seconds * MICROS + micros, precision)
    }
}

const MICROS: i64 = 1_000_000;

/// Microseconds in the units of a DateTime64, if they are whole ones.
#[inline]
fn units(micros: i64, precision: u8) -> Result<i64, ValueError> {
    if precision == 6 {
        return Ok(micros);
    }
    let unit = 10_i64.pow(u32::from(6_u8.saturating_sub(precision)));
    if micros % unit != 0 {
        return Err(ValueError::Unrepresentable("the timestamp has more digits of a second than the DateTime64"));
    }
    Ok(micros / unit)
}

/// Reads a time without a zone as microseconds since midnight, for a `Time64(6)`. 24:00:00 is one.
pub fn time_of_day(text: &[u8]) -> Result<i64, ValueError> {
    const MALFORMED: ValueError = ValueError::Malformed("a time is HH:MM:SS, perhaps with a fraction");
    const DAY: i64 = 86_400 * MICROS;
    let mut input = text;
    let (seconds, micros) = clock(&mut input, 24).filter(|_| input.is_empty()).ok_or(MALFORMED)?;
    Some(seconds * MICROS + micros).filter(|&time| time <= DAY).ok_or(MALFORMED)
}

/// The end of all days on its side, for an infinity.
fn infinity(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => Some(i64::MAX),
        b"-infinity" => Some(i64::MIN),
        _ => None,
    }
}

fn whole_date(text: &[u8]) -> Result<i64, ValueError> {
    let (mut input, bc) = without_era(text);
    days(&mut input, bc).filter(|_| input.is_empty()).ok_or(MALFORMED_DATE)
}

fn whole_timestamp(text: &[u8]) -> Result<(i64, i64), ValueError> {
    if let Some(found) = plain(text) {
        return Ok(found);
    }
    let (mut input, bc) = without_era(text);
    moment(&mut input, bc).filter(|_| input.is_empty()).ok_or(MALFORMED)
}

fn is_infinite(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

/// The era is printed last, after the offset.
fn without_era(text: &[u8]) -> (&[u8], bool) {
    text.strip_suffix(b" BC").map_or((text, false), |text| (text, true))
}

/// As [`moment`], of the form that nearly all have: AD, four digits of the year, UTC. `None` for any
/// other, errors among them.
#[inline]
fn plain(text: &[u8]) -> Option<(i64, i64)> {
    let (fixed, mut rest) = text.split_first_chunk::<19>()?;
    let mut highest = 0;
    let mut two = |at: usize| {
        let (tens, ones) = (fixed[at].wrapping_sub(b'0'), fixed[at + 1].wrapping_sub(b'0'));
        highest = tens.max(ones).max(highest);
        i64::from(tens) * 10 + i64::from(ones)
    };
    let year = two(0) * 100 + two(2);
    let (month, day, hour, minute, second) = (two(5), two(8), two(11), two(14), two(17));
    let separators = [fixed[4], fixed[7], fixed[10], fixed[13], fixed[16]];
    if highest > 9 || separators != *b"-- ::" || year == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = 0;
    if let Some((b'.', fraction)) = rest.split_first() {
        let length = fraction.iter().take(6).take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, after) = fraction.split_at(length);
        micros = digits.iter().fold(0, |value, &digit| value * 10 + i64::from(digit - b'0'));
        // A point without a digit is an error.
        micros *= [100_000, 10_000, 1_000, 100, 10, 1].get(length.checked_sub(1)?)?;
        rest = after;
    }
    if !rest.is_empty() && rest != b"+00" {
        return None;
    }
    Some((days_of(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second, micros))
}

/// Seconds since 1970 in UTC, and microseconds.
fn moment(input: &mut &[u8], bc: bool) -> Option<(i64, i64)> {
    let days = days(input, bc)?;
    skip(input, b' ')?;
    let (seconds, micros) = clock(input, 23)?;
    Some((days * 86_400 + seconds - offset(input)?, micros))
}

/// Seconds since midnight, and microseconds, of the time at the front of `input`.
fn clock(input: &mut &[u8], last_hour: i64) -> Option<(i64, i64)> {
    let hour = two_digits(input).filter(|&hour| hour <= last_hour)?;
    skip(input, b':')?;
    let minute = two_digits(input).filter(|&minute| minute < 60)?;
    skip(input, b':')?;
    let second = two_digits(input).filter(|&second| second < 60)?;
    let micros = if input.first() == Some(&b'.') { fraction(input)? } else { 0 };
    Some((hour * 3_600 + minute * 60 + second, micros))
}

/// Days since 1970-01-01 of the date at the front of `input`.
fn days(input: &mut &[u8], bc: bool) -> Option<i64> {
    let year = year(input)?;
    skip(input, b'-')?;
    let month = two_digits(input)?;
    skip(input, b'-')?;
    let day = two_digits(input)?;
    // There is no year 0: 1 BC comes before AD 1.
    days_of(if bc { 1 - year } else { year }, month, day)
}

/// Days since 1970-01-01 of a date, if there is such a day. The year 0 is 1 BC.
#[inline]
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    let length = *MONTH_LENGTH.get(month)? + i64::from(leap && month == 1);
    if !(1..=length).contains(&day) {
        return None;
    }
    let before_month = *BEFORE_MONTH.get(month)? + i64::from(leap && month > 1);
    Some(before_year(year) + before_month + day - 1)
}

const MONTH_LENGTH: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
/// Days of a common year before each month.
const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

/// Days from 1970-01-01 to the first day of this year of the proleptic Gregorian calendar.
fn before_year(year: i64) -> i64 {
    const FROM_YEAR_ONE_TO_1970: i64 = 719_162;
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - FROM_YEAR_ONE_TO_1970
}

/// Four digits, or up to seven from the year 10000 on.
fn year(input: &mut &[u8]) -> Option<i64> {
    let length = input.iter().take(8).take_while(|byte| byte.is_ascii_digit()).count();
    if !(4..=7).contains(&length) {
        return None;
    }
    let (digits, rest) = input.split_at_checked(length)?;
    *input = rest;
    let year = digits.iter().fold(0, |year, &digit| year * 10 + i64::from(digit - b'0'));
    (year != 0).then_some(year)
}

/// A point and one to six digits.
fn fraction(input: &mut &[u8]) -> Option<i64> {
    skip(input, b'.')?;
    let length = input.iter().take(7).take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=6).contains(&length) {
        return None;
    }
    let (digits, rest) = input.split_at_checked(length)?;
    *input = rest;
    let zeros = std::iter::repeat_n(&b'0', 6 - length);
    Some(digits.iter().chain(zeros).fold(0, |value, &digit| value * 10 + i64::from(digit - b'0')))
}

/// `+HH`, `+HH:MM`, `+HH:MM:SS` or with a minus; nothing at all is UTC. In seconds.
fn offset(input: &mut &[u8]) -> Option<i64> {
    let sign = match input.first() {
        None => return Some(0),
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return None,
    };
    *input = input.get(1..)?;
    let mut seconds = two_digits(input)? * 3_600;
    for unit in [60, 1] {
        if input.is_empty() {
            break;
        }
        skip(input, b':')?;
        seconds += two_digits(input).filter(|&value| value < 60)? * unit;
    }
    Some(sign * seconds)
}

fn skip(input: &mut &[u8], byte: u8) -> Option<()> {
    let (&first, rest) = input.split_first()?;
    *input = rest;
    (first == byte).then_some(())
}

fn two_digits(input: &mut &[u8]) -> Option<i64> {
    let (&[tens, ones], rest) = input.split_first_chunk::<2>()?;
    *input = rest;
    let digit = |byte: u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    Some(digit(tens)? * 10 + digit(ones)?)
}

#[cfg(test)]
mod tests;
