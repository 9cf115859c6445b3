use super::ValueError;
use std::{net::IpAddr, str::FromStr};

const MALFORMED: ValueError = ValueError::Malformed("an inet is an address, perhaps with a slash and a length");
const MASK: ValueError = ValueError::Unrepresentable("an address with the length of a network");
const OTHER_FAMILY: ValueError = ValueError::Unrepresentable("an address of the other family");

/// Reads an inet that is a single IPv4 address.
pub fn ipv4(text: &[u8]) -> Result<u32, ValueError> {
    match address(text)? {
        IpAddr::V4(address) => Ok(address.into()),
        IpAddr::V6(_) => Err(OTHER_FAMILY),
    }
}

/// Reads an inet that is a single IPv6 address, in network order. An IPv4 address is none, although
/// it could be mapped: it would read back as another text.
pub fn ipv6(text: &[u8]) -> Result<[u8; 16], ValueError> {
    match address(text)? {
        IpAddr::V6(address) => Ok(address.octets()),
        IpAddr::V4(_) => Err(OTHER_FAMILY),
    }
}

fn address(text: &[u8]) -> Result<IpAddr, ValueError> {
    let text = std::str::from_utf8(text).map_err(|_| MALFORMED)?;
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address = IpAddr::from_str(address).map_err(|_| MALFORMED)?;
    match length.map(u8::from_str) {
        None => Ok(address),
        Some(Ok(_)) => Err(MASK),
        Some(Err(_)) => Err(MALFORMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_one_family_and_of_one_host() {
        assert_eq!(ipv4(b"10.0.0.1"), Ok(0x0a00_0001));
        assert_eq!(ipv4(b"255.255.255.255"), Ok(u32::MAX));
        assert_eq!(ipv6(b"::1").map(u128::from_be_bytes), Ok(1));
        assert_eq!(ipv6(b"::ffff:1.2.3.4").map(u128::from_be_bytes), Ok(0xffff_0102_0304));
        assert_eq!(ipv4(b"::1"), Err(OTHER_FAMILY));
        assert_eq!(ipv6(b"10.0.0.1"), Err(OTHER_FAMILY));
        assert_eq!(ipv4(b"10.0.0.0/8"), Err(MASK));
        assert_eq!(ipv6(b"2001:db8::/32"), Err(MASK));
    }

    #[test]
    fn what_is_no_address_is_malformed() {
        for text in ["", "1.2.3", "1.2.3.4.5", "256.0.0.1", "1.2.3.4/", "1.2.3.4/x", "1::2::3", "a", " ::1"] {
            assert_eq!(ipv4(text.as_bytes()), Err(MALFORMED), "{text:?}");
            assert_eq!(ipv6(text.as_bytes()), Err(MALFORMED), "{text:?}");
        }
    }
}
