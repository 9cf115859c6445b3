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

    #[test]
    fn the_short_way_gives_what_the_long_one_does(
        mut text in "(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,7})?(\\+00|\\+05:30|-01| BC)?",
        place in 0usize..40, byte in 0u8..128, change: bool,
    ) {
        if change && place < text.len() {
            text.replace_range(place..=place, &char::from(byte).to_string());
        }
        let (mut rest, bc) = without_era(text.as_bytes());
        let long = moment(&mut rest, bc).filter(|_| rest.is_empty());
        if let Some(short) = plain(text.as_bytes()) {
            prop_assert_eq!(Some(short), long);
        }
    }
}
