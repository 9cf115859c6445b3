//! The source: what walhouse knows about PostgreSQL, and says outwards in the words of
//! [`event`](crate::event) alone.

pub mod acknowledged;
pub mod again;
pub mod assembler;
pub mod catalog;
pub mod catchup;
pub mod chunk;
pub mod connection;
pub mod creation;
mod ddl;
pub mod lock;
pub mod lookup;
pub mod outlet;
pub mod pgoutput;
pub mod plugin;
pub mod publication;
pub mod retention;
pub mod slot;
pub mod snapshot;
pub mod source;
pub mod sql;
pub mod streaming;
pub mod transport;
pub mod wire;
