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
    let year = if bc { 1 - year } else { year };
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wide(text: &str) -> Result<i64, ValueError> {
        timestamp(text.as_bytes(), DateTimeRange::Wide, 6)
    }

    fn narrow(text: &str) -> Result<i64, ValueError> {
        timestamp(text.as_bytes(), DateTimeRange::Narrow, 6)
    }

    #[test]
    fn dates_count_from_1970() {
        for (text, days) in [
            ("1970-01-01", 0),
            ("1969-12-31", -1),
            ("2000-02-29", 11_016),
            ("2000-03-01", 11_017),
            ("2024-02-29", 19_782),
            ("1900-01-01", -25_567),
            ("1900-03-01", -25_508),
            ("2299-12-31", 120_529),
        ] {
            assert_eq!(date(text.as_bytes()), Ok(days), "{text}");
        }
    }

    #[test]
    fn a_date_that_date32_has_no_place_for_is_unrepresentable() {
        for text in [
            "1899-12-31",
            "2300-01-01",
            "0001-01-01",
            "0001-12-31 BC",
            "2024-01-01 BC",
            "4714-11-24 BC",
            "10000-01-01",
            "5874897-12-31",
            "infinity",
            "-infinity",
        ] {
            assert!(matches!(date(text.as_bytes()), Err(ValueError::Unrepresentable(_))), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_malformed() {
        for text in [
            "",
            "2024",
            "2024-1-01",
            "2024-01-1",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "2024-01-32",
            "2023-02-29",
            "2100-02-29",
            "2024-04-31",
            "0000-01-01",
            "0000-01-01 BC",
            "024-01-01",
            "12345678-01-01",
            "2024-01-01 ",
            "2024-01-01BC",
            "-2024-01-01",
            "2024-01-01 00:00:00",
            "Infinity",
        ] {
            assert_eq!(date(text.as_bytes()), Err(MALFORMED_DATE), "{text:?}");
        }
    }

    #[test]
    fn what_is_outside_of_the_range_is_clamped_to_its_nearer_end() {
        let days = |text: &str| clamped_date(text.as_bytes());
        for text in ["-infinity", "1899-12-31", "0044-03-15 BC"] {
            assert_eq!(days(text), Ok(-25_567), "{text}");
        }
        for text in ["infinity", "2300-01-01", "5874897-12-31"] {
            assert_eq!(days(text), Ok(120_529), "{text}");
        }
        assert_eq!(days("1970-01-02"), Ok(1));
        assert_eq!(days("x"), Err(MALFORMED_DATE));

        let clamped = |text: &str, precision| clamped_timestamp(text.as_bytes(), DateTimeRange::Narrow, precision);
        for text in ["infinity", "2300-01-01 00:00:00", "294276-12-31 23:59:59.999999"] {
            assert_eq!(clamped(text, 6), narrow("2299-12-31 23:59:59.999999"), "{text}");
            assert_eq!(clamped(text, 0), Ok(10_413_791_999), "{text}");
        }
        for text in ["-infinity", "1899-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC"] {
            assert_eq!(clamped(text, 6), narrow("1900-01-01 00:00:00"), "{text}");
        }
        assert_eq!(clamped("1970-01-01 00:00:00.5", 3), Ok(500));
        // It lies inside of the range, between two values.
        assert!(matches!(clamped("1970-01-01 00:00:00.5", 0), Err(ValueError::Unrepresentable(_))));
        assert_eq!(clamped("x", 6), Err(MALFORMED));
    }

    #[test]
    fn a_coarser_datetime_takes_only_what_it_can_hold() {
        let read = |text: &str, precision| timestamp(text.as_bytes(), DateTimeRange::Narrow, precision);
        assert_eq!(read("1970-01-01 00:00:01.25", 3), Ok(1250));
        assert_eq!(read("1969-12-31 23:59:59.5", 1), Ok(-5));
        assert_eq!(read("1970-01-01 00:00:01", 0), Ok(1));
        assert!(matches!(read("1970-01-01 00:00:01.25", 1), Err(ValueError::Unrepresentable(_))));
        assert!(matches!(read("1969-12-31 23:59:59.999999", 5), Err(ValueError::Unrepresentable(_))));
    }

    #[test]
    fn a_time_ends_at_midnight_of_the_next_day() {
        for (text, micros) in [
            ("00:00:00", 0),
            ("01:02:03.000004", 3_723_000_004),
            ("23:59:59.999999", 86_399_999_999),
            ("24:00:00", 86_400_000_000),
        ] {
            assert_eq!(time_of_day(text.as_bytes()), Ok(micros), "{text}");
        }
        for text in
            ["", "24:00:00.000001", "24:01:00", "25:00:00", "1:00:00", "00:60:00", "00:00:60", "00:00", "00:00:00+00"]
        {
            assert!(matches!(time_of_day(text.as_bytes()), Err(ValueError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn timestamps_are_microseconds_in_utc() {
        for (text, micros) in [
            ("1970-01-01 00:00:00", 0),
            ("1970-01-01 00:00:00+00", 0),
            ("1970-01-01 00:00:00.000001", 1),
            ("1969-12-31 23:59:59.999999+00", -1),
            ("2024-01-02 03:04:05.123456+00", 1_704_164_645_123_456),
            ("2024-01-02 03:04:05.1", 1_704_164_645_100_000),
            ("2024-01-02 03:04:05+05:30", 1_704_144_845_000_000),
            ("2024-01-02 03:04:05-08", 1_704_193_445_000_000),
            ("2024-01-02 03:04:05+00:00:00", 1_704_164_645_000_000),
            ("1880-01-01 00:53:28+00:53:28", -2_840_140_800_000_000),
            ("9999-12-31 23:59:59.999999+00", 253_402_300_799_999_999),
            ("0001-01-01 00:00:00+00", -62_135_596_800_000_000),
            ("10000-01-01 00:00:00+01", 253_402_297_200_000_000),
            ("0001-12-31 23:30:00-01 BC", -62_135_595_000_000_000),
        ] {
            assert_eq!(wide(text), Ok(micros), "{text}");
        }
    }

    #[test]
    fn the_range_of_a_timestamp_is_that_of_the_server() {
        assert_eq!(narrow("1900-01-01 00:00:00"), Ok(-2_208_988_800_000_000));
        assert_eq!(narrow("2299-12-31 23:59:59.999999"), Ok(10_413_791_999_999_999));
        for text in ["1899-12-31 23:59:59.999999", "2300-01-01 00:00:00", "1900-01-01 00:00:00+00:00:01"] {
            assert!(matches!(narrow(text), Err(ValueError::Unrepresentable(_))), "{text}");
            assert!(wide(text).is_ok(), "{text}");
        }
        for text in [
            "0001-12-31 23:59:59.999999+00 BC",
            "4714-11-24 00:00:00+00 BC",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "9999999-12-31 23:59:59.999999",
            "infinity",
            "-infinity",
        ] {
            assert!(matches!(wide(text), Err(ValueError::Unrepresentable(_))), "{text}");
        }
        assert_eq!(DateTimeRange::of_server(26, 6), DateTimeRange::Narrow);
        assert_eq!(DateTimeRange::of_server(26, 7), DateTimeRange::Wide);
        assert_eq!(DateTimeRange::of_server(25, 8), DateTimeRange::Narrow);
        assert_eq!(DateTimeRange::of_server(27, 1), DateTimeRange::Wide);
    }

    #[test]
    fn what_is_no_timestamp_is_malformed() {
        for text in [
            "",
            "2024-01-02",
            "2024-01-02 03:04",
            "2024-01-02T03:04:05",
            "2024-01-02 24:00:00",
            "2024-01-02 03:60:00",
            "2024-01-02 03:04:60",
            "2024-01-02 03:04:05.",
            "2024-01-02 03:04:05.1234567",
            "2024-01-02 03:04:05+",
            "2024-01-02 03:04:05+1",
            "2024-01-02 03:04:05+01:",
            "2024-01-02 03:04:05+01:60",
            "2024-01-02 03:04:05+01:00:00:00",
            "2024-01-02 03:04:05Z",
            "2024-01-02 03:04:05 AD",
            "2024-02-30 03:04:05",
            "01/02/2024 03:04:05",
        ] {
            assert_eq!(wide(text), Err(MALFORMED), "{text:?}");
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_follows_the_one_before() {
        let mut expected = -719_162;
        for year in 1..=9_999i64 {
            let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
            let february = if leap { 29 } else { 28 };
            for (month, length) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate() {
                for day in [1, length] {
                    let text = format!("{year:04}-{:02}-{day:02}", month + 1);
                    assert_eq!(days(&mut text.as_bytes(), false), Some(expected + day - 1), "{text}");
                }
                expected += length;
            }
        }
        assert_eq!(days(&mut b"0001-12-31".as_slice(), true), Some(-719_163));
        assert_eq!(days(&mut b"0001-02-29".as_slice(), true), Some(-719_163 - 306));
    }

    proptest! {
        #[test]
        fn the_parts_of_a_moment_add_up(
            day in 0i64..120_530, second in 0i64..86_400, micro in 0i64..1_000_000, offset in -50_400i64..50_400,
        ) {
            // The date of a day, by walking there year by year and month by month.
            let (mut year, mut month, mut left) = (1970, 0, day);
            let length = |year: i64, month: usize| match month {
                1 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
                1 => 28,
                3 | 5 | 8 | 10 => 30,
                _ => 31,
            };
            while left >= length(year, month) {
                left -= length(year, month);
                (year, month) = if month == 11 { (year + 1, 0) } else { (year, month + 1) };
            }
            let sign = if offset < 0 { '-' } else { '+' };
            let shift = offset.abs();
            let text = format!(
                "{year}-{:02}-{:02} {:02}:{:02}:{:02}.{micro:06}{sign}{:02}:{:02}:{:02}",
                month + 1, left + 1, second / 3600, second / 60 % 60, second % 60,
                shift / 3600, shift / 60 % 60, shift % 60,
            );
            prop_assert_eq!(wide(&text), Ok((day * 86_400 + second - offset) * 1_000_000 + micro));
            prop_assert_eq!(date(&text.as_bytes()[..10]), Ok(day as i32));
        }
    }
}
