use std::{fmt, str::FromStr};

/// A position in PostgreSQL's write-ahead log, in bytes from its beginning.
///
/// Printed as PostgreSQL prints `pg_lsn`: two hexadecimal halves, `16/B374D848`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// "Nothing yet": PostgreSQL's invalid LSN.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` up to here; zero when `earlier` is not earlier.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not of the form `16/B374D848`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an LSN: expected two hexadecimal numbers with a slash between, such as 16/B374D848")]
pub struct ParseLsnError;

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let half = |digits: &str| {
            // from_str_radix takes a leading '+', which no LSN has.
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseLsnError);
            }
            u32::from_str_radix(digits, 16).map_err(|_| ParseLsnError)
        };
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_pg_lsn() {
        for (value, text) in [(0, "0/0"), (0x16_B374_D848, "16/B374D848"), (u64::MAX, "FFFFFFFF/FFFFFFFF")] {
            assert_eq!(Lsn(value).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(value)));
        }
    }

    #[test]
    fn a_distance_is_from_what_is_earlier() {
        assert_eq!(Lsn(0x1_0000_0007).since(Lsn(5)), 0x1_0000_0002);
        assert_eq!((Lsn(5).since(Lsn(5)), Lsn(5).since(Lsn(7))), (0, 0));
        assert_eq!(format!("{:?}", Lsn(0x16_B374_D848)), "16/B374D848");
    }

    #[test]
    fn refuses_what_is_no_lsn() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "g/0", "+1/0", "100000000/0", "0/ 1"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text:?}");
        }
    }
}
