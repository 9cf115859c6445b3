//! The source: what walhouse knows about PostgreSQL, and says outwards in the words of
//! [`event`](crate::event) alone.

pub mod pgoutput;
pub mod wire;
