//! The queue lane: from events that applications write into the WAL to SQS.
//!
//! [`outbox`] reads them out of the stream, with the changes of tables that are [`published`] themselves, [`outgoing`] gives them their envelope, [`pending`] keeps their order, [`client`]
//! speaks to SQS, and [`publisher`] is the lane that joins these. What is too much to be held is read again later: [`intake`]
//! and [`feed`]. What is too large for a message is put into the object store, and its message refers to it: [`claim`].
//!
//! Rows that their tables in ClickHouse do not take, [`lost`] rows, come here as dead letters.
//!
//! And back: [`messages`] are taken from a queue, and a [`consumer`] has each of them handled. What it can not handle is a dead
//! letter ([`letters`]), which somebody looks at, and [`redrive`] sends [`home`].

pub mod claim;
pub mod client;
pub mod consumer;
pub mod feed;
mod home;
mod intake;
pub mod letters;
pub mod lost;
pub mod messages;
pub mod outbox;
pub mod outgoing;
mod own;
mod patience;
pub mod pending;
pub mod provision;
pub mod published;
pub mod publisher;
pub mod redrive;
mod shape;
mod walk;
