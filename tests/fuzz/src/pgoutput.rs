//! One message of the output plugin.
//!
//! What is taken can be written again, byte for byte, except for bits that mean nothing; nothing shorter or longer is taken
//! in its place; and reading it takes no more memory than some times its length.

use super::{alloc::peak, encoder::Encoder};
use walhouse::postgres::pgoutput::{DecodeError, decode};

/// Names and their places are what is allocated, and a column is ten bytes at least.
const TIMES: usize = 8;

pub fn run(data: &[u8]) {
    let (decoded, bytes) = peak(|| decode(data));
    assert!(bytes <= TIMES * data.len(), "{bytes} bytes for a message of {}", data.len());
    let message = match decoded {
        Ok(message) => message,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut encoder = Encoder::default();
    if encoder.message(&message, data) {
        let mut counted = data.to_vec();
        assert_eq!(encoder.out.len(), counted.len(), "no byte is read past or left out");
        for &(at, mask) in &encoder.masks {
            counted[at] &= mask;
        }
        assert!(encoder.out == counted, "what was read is what is there");
    }
    let step = data.len().div_ceil(64).max(1);
    for end in (0..data.len()).step_by(step) {
        assert!(decode(&data[..end]).is_err(), "a message cut at {end} is none");
    }
    let longer = [data, b"\0"].concat();
    assert!(matches!(decode(&longer), Err(DecodeError::Trailing { .. })), "nothing follows a message");
}
