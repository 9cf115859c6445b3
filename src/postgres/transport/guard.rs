//! Whoever asks for a password in the clear does not get it over a network that all can read.
//!
//! tokio-postgres answers any request of the server's. So what an unencrypted server says first is looked at on its way, up to
//! how it wants to authenticate; if that is by the password itself, whoever reads gets an error in its place.

use super::Cleartext;
use std::io;

/// The kind of a message that asks for authentication, with its length, and the method.
const HEAD: usize = 1 + 4 + 4;
/// The method that sends the password itself.
const CLEARTEXT: [u8; 4] = [0, 0, 0, 3];

/// Looks at the first messages.
pub(super) struct Guard {
    is_on: bool,
    head: [u8; HEAD],
    have: usize,
    /// So many bytes of a message about something else are still to come.
    skip: usize,
}

impl Guard {
    pub(super) fn on() -> Self {
        Self { is_on: true, head: [0; HEAD], have: 0, skip: 0 }
    }

    pub(super) fn off() -> Self {
        Self { is_on: false, ..Self::on() }
    }

    /// Looks at what was read.
    ///
    /// # Errors
    /// If it asks for the password.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_on {
            return Ok(());
        }
        for &byte in bytes {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.head[self.have] = byte;
            self.have += 1;
            let [kind, a, b, c, d, method @ ..] = self.head;
            if self.have == 5 && kind != b'R' {
                // A notice, say. Its length counts itself.
                self.skip = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX).saturating_sub(4);
                self.have = 0;
            }
            if self.have == HEAD {
                self.is_on = method == CLEARTEXT;
                if self.is_on {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, Cleartext));
                }
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICE: &[u8] = b"N\0\0\0\x0bR\0\0\0\x08\0\0";

    /// In pieces of `size`.
    fn passes(bytes: &[u8], size: usize) -> bool {
        let mut guard = Guard::on();
        bytes.chunks(size).all(|piece| guard.pass(piece).is_ok())
    }

    #[test]
    fn a_request_for_the_password_is_seen_however_it_comes() {
        for before in [&b""[..], NOTICE, &[NOTICE, NOTICE].concat()] {
            let request = [before, b"R\0\0\0\x08\0\0\0\x03"].concat();
            for size in 1..=request.len() {
                assert!(!passes(&request, size), "{} in pieces of {size}", request.len());
            }
        }
        assert!(Guard::off().pass(b"R\0\0\0\x08\0\0\0\x03").is_ok());
    }

    #[test]
    fn anything_else_goes_through_and_so_does_all_that_follows() {
        for method in [0, 5, 10] {
            let first = [NOTICE, b"R\0\0\0\x08\0\0\0", &[method], b"R\0\0\0\x08\0\0\0\x03"].concat();
            for size in 1..=first.len() {
                assert!(passes(&first, size), "{method} in pieces of {size}");
            }
        }
        assert!(passes(b"E\0\0\0\x04Z", 1) && passes(b"X\0\0\0\0\xff\xff\xff\xff", 3));
    }
}
