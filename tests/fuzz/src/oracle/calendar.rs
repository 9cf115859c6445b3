use super::Meaning::{self, Malformed, Unheld, Value};
use walhouse::clickhouse::text::DateTimeRange;

const DAY: i128 = 86_400;

/// A reader of letters that goes on only where it has found what it looks for.
struct Letters<'a>(&'a str);

impl Letters<'_> {
    fn has(&mut self, letter: char) -> bool {
        let rest = self.0.strip_prefix(letter);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// A number of so many digits at least and at most, as many as there are.
    fn digits(&mut self, least: usize, most: usize) -> Option<(i128, usize)> {
        let length = self.0.chars().take_while(char::is_ascii_digit).count();
        if !(least..=most).contains(&length) {
            return None;
        }
        let (digits, rest) = self.0.split_at(length);
        self.0 = rest;
        Some((digits.parse().ok()?, length))
    }

    /// Two digits, whatever comes after them, below a limit.
    fn two(&mut self, limit: i128) -> Option<i128> {
        let two = self.0.get(..2).filter(|two| two.chars().all(|letter| letter.is_ascii_digit()))?;
        self.0 = &self.0[2..];
        two.parse().ok().filter(|&value| value < limit)
    }

    fn day(&mut self, before_christ: bool) -> Option<i128> {
        let (year, _) = self.digits(4, 7).filter(|(year, _)| *year > 0)?;
        let month = self.has('-').then(|| self.two(100)).flatten()?;
        let day = self.has('-').then(|| self.two(100)).flatten()?;
        days(if before_christ { 1 - year } else { year }, month, day)
    }

    /// Microseconds of a day.
    fn clock(&mut self, hours: i128) -> Option<i128> {
        let hour = self.two(hours)?;
        let minute = self.has(':').then(|| self.two(60)).flatten()?;
        let second = self.has(':').then(|| self.two(60)).flatten()?;
        let mut micros = ((hour * 60 + minute) * 60 + second) * 1_000_000;
        if self.has('.') {
            let (fraction, length) = self.digits(1, 6)?;
            micros += (length..6).fold(fraction, |fraction, _| fraction * 10);
        }
        Some(micros)
    }

    fn offset(&mut self) -> Option<i128> {
        let sign = match (self.0.is_empty(), self.has('+'), self.has('-')) {
            (true, ..) => return Some(0),
            (_, true, _) => 1,
            (_, _, true) => -1,
            _ => return None,
        };
        let mut seconds = self.two(100)? * 3600;
        for unit in [60, 1] {
            if !self.0.is_empty() {
                seconds += self.has(':').then(|| self.two(60)).flatten()? * unit;
            }
        }
        Some(sign * seconds)
    }
}

fn is_leap(year: i128) -> bool {
    year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0)
}

/// Days since 1970-01-01, counted.
fn days(year: i128, month: i128, day: i128) -> Option<i128> {
    let of_month = |month| match month {
        2 if is_leap(year) => Some(29),
        2 => Some(28),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    };
    if day < 1 || day > of_month(month)? {
        return None;
    }
    // Four hundred years are always as many days; the years that are left are counted one by one.
    let (cycles, left) = ((year - 1970).div_euclid(400), (year - 1970).rem_euclid(400));
    let of_years: i128 = (1970..1970 + left).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let of_months: i128 = (1..month).filter_map(of_month).sum();
    Some(cycles * 146_097 + of_years + of_months + day - 1)
}

/// A text without its era, and whether that is the one before Christ.
fn era(text: &[u8]) -> Option<(&str, bool)> {
    let text = std::str::from_utf8(text).ok()?;
    Some(text.strip_suffix(" BC").map_or((text, false), |text| (text, true)))
}

fn infinite(text: &[u8]) -> Option<bool> {
    match text {
        b"infinity" => Some(true),
        b"-infinity" => Some(false),
        _ => None,
    }
}

pub fn date(text: &[u8]) -> Meaning {
    let (first, last) = (days(1900, 1, 1).unwrap(), days(2299, 12, 31).unwrap());
    let value = |days: i128| i32::try_from(days).unwrap().to_le_bytes().to_vec();
    if let Some(last_one) = infinite(text) {
        return Unheld(Some(value(if last_one { last } else { first })));
    }
    let read = era(text).and_then(|(text, before_christ)| {
        let mut letters = Letters(text);
        letters.day(before_christ).filter(|_| letters.0.is_empty())
    });
    match read {
        None => Malformed,
        Some(days) if days < first => Unheld(Some(value(first))),
        Some(days) if days > last => Unheld(Some(value(last))),
        Some(days) => Value(value(days)),
    }
}

pub fn timestamp(text: &[u8], range: DateTimeRange, precision: u8) -> Meaning {
    let (from, until) = if range == DateTimeRange::Wide { (1, 10_000) } else { (1900, 2300) };
    let micros = |year| days(year, 1, 1).unwrap() * DAY * 1_000_000;
    let (first, end) = (micros(from), micros(until));
    let unit = (precision..6).fold(1, |unit, _| unit * 10);
    let value = |units: i128| i64::try_from(units).unwrap().to_le_bytes().to_vec();
    let (lowest, highest) = (value(first / unit), value(end / unit - 1));
    if let Some(last_one) = infinite(text) {
        return Unheld(Some(if last_one { highest } else { lowest }));
    }
    let read = era(text).and_then(|(text, before_christ)| {
        let mut letters = Letters(text);
        let day = letters.day(before_christ)?;
        let clock = letters.has(' ').then(|| letters.clock(24)).flatten()?;
        let offset = letters.offset()?;
        letters.0.is_empty().then(|| (day * DAY - offset) * 1_000_000 + clock)
    });
    match read {
        None => Malformed,
        Some(micros) if micros < first => Unheld(Some(lowest)),
        Some(micros) if micros >= end => Unheld(Some(highest)),
        Some(micros) if micros % unit != 0 => Unheld(None),
        Some(micros) => Value(value(micros / unit)),
    }
}

pub fn time_of_day(text: &[u8]) -> Meaning {
    let read = std::str::from_utf8(text).ok().and_then(|text| {
        let mut letters = Letters(text);
        letters.clock(25).filter(|&micros| letters.0.is_empty() && micros <= DAY * 1_000_000)
    });
    read.map_or(Malformed, |micros| Value(i64::try_from(micros).unwrap().to_le_bytes().to_vec()))
}
