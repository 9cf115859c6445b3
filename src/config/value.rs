//! Values that a person writes and a machine needs: sizes, spans of time, choices, secrets.
//!
//! Every one of them says in its error what is accepted, and prints itself in a form that it reads
//! back. A secret prints as [`REDACTED`], whatever asks for it.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands in the place of a secret in every output.
pub const REDACTED: &str = "(redacted)";

/// A number of bytes: `"8MiB"`, `"500kB"`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Largest first, binary before decimal, so that printing takes the first that divides.
const UNITS: [(&str, u64); 6] =
    [("GiB", 1 << 30), ("GB", 1_000_000_000), ("MiB", 1 << 20), ("MB", 1_000_000), ("KiB", 1 << 10), ("kB", 1_000)];

impl ByteSize {
    /// So many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// As a length in memory; saturates where pointers are small.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "{text:?} is not a size; give bytes, or a whole number with a unit, such as \"8MiB\", \"500kB\" or \"1GiB\""
            )
        };
        let trimmed = text.trim();
        let digits_end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(digits_end);
        let number: u64 = digits.replace('_', "").parse().map_err(|_| refused())?;
        let unit = unit.trim();
        let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() || unit.eq_ignore_ascii_case("B") => 1,
            None => return Err(refused()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(refused)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A span of time: `"1s"`, `"250ms"`, `"2m 30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timespan(pub Duration);

impl FromStr for Timespan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|_| {
            format!("{text:?} is not a span of time; give a number with a unit, such as \"1s\", \"250ms\" or \"2m\"")
        })
    }
}

impl fmt::Display for Timespan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// What becomes of a value that its column can not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unrepresentable {
    /// The row goes to the dead letters, counted and named.
    #[default]
    DeadLetter,
    /// NULL is stored in its place.
    Null,
    /// The nearest value that the column holds is stored.
    Clamp,
    /// The table stops.
    Fail,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// A closed set of words, with one message for everything else.
macro_rules! words {
    ($type:ident: $($word:literal => $variant:ident),+) => {
        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("{text:?} is none of {}", [$(concat!("\"", $word, "\"")),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)+ })
            }
        }
    };
}

words!(Unrepresentable: "dead_letter" => DeadLetter, "null" => Null, "clamp" => Clamp, "fail" => Fail);
words!(LogFormat: "text" => Text, "json" => Json);

/// Reads and writes a type as the text that its `FromStr` takes and its `Display` gives.
macro_rules! as_text {
    ($($type:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )+};
}
pub(super) use as_text;
pub(super) use words;

as_text!(ByteSize, Timespan, Unrepresentable, LogFormat);

/// The value of a key that a later version will know: never there, since reading it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotYet {}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("this version of walhouse does not support it yet; remove it"))
    }
}

impl Serialize for NotYet {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        match *self {}
    }
}

/// An address to listen on.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is not an address with a port, such as \"127.0.0.1:9464\""))
    })
}

/// A secret as a configuration holds it.
pub(super) mod secret {
    use super::{Deserialize, Deserializer, REDACTED, SecretString, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
        String::deserialize(deserializer).map(|text| Some(text.into()))
    }

    pub(crate) fn serialize<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
        match secret {
            Some(_) => serializer.serialize_some(REDACTED),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_bytes_and_in_units_of_either_kind() {
        for (text, bytes) in [
            ("4096", 4096),
            ("500_000", 500_000),
            ("8MiB", 8 << 20),
            ("8 MiB", 8 << 20),
            ("8mib", 8 << 20),
            ("500kB", 500_000),
            ("1GB", 1_000_000_000),
            ("0", 0),
            ("12B", 12),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_is_accepted() {
        for text in ["", "MiB", "-1", "1.5MiB", "8 parsecs", "99999999999999999999", "18446744073709551615GiB"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.contains("8MiB"), "{error}");
        }
    }

    #[test]
    fn spans_of_time_are_read_with_their_unit_only() {
        assert_eq!("250ms".parse(), Ok(Timespan(Duration::from_millis(250))));
        assert_eq!("1m 30s".parse(), Ok(Timespan(Duration::from_secs(90))));
        for text in ["", "1", "1 parsec", "-1s"] {
            assert!(text.parse::<Timespan>().expect_err(text).contains("250ms"));
        }
    }

    #[test]
    fn a_choice_names_its_words_when_it_refuses_one() {
        let error = "drop".parse::<Unrepresentable>().expect_err("no such word");
        assert_eq!(error, r#""drop" is none of "dead_letter", "null", "clamp", "fail""#);
    }

    proptest! {
        #[test]
        fn sizes_print_as_they_are_read(bytes in any::<u64>(), shift in 0u32..40) {
            let size = ByteSize(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
