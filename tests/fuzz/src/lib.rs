//! What the fuzz targets do with their input, in one place: `targets/` hands them what libFuzzer makes up, and
//! `tests/fuzz_corpus.rs` the committed corpus, every input that has found something, and mutations of them.
//!
//! Each module is one target, and its `run` panics where a promise is broken. The oracles are slow and independent of what
//! they judge: they share neither code nor tables with it.

// A target that can not go on has found something.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod alloc;
pub mod assembler;
pub mod config;
pub mod copy;
mod encoder;
pub mod event;
mod input;
pub mod native;
mod oracle;
pub mod pgoutput;
pub mod text;
pub mod wire;

/// A target: its name, which is that of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("assembler", assembler::run),
    ("config", config::run),
    ("copy", copy::run),
    ("event", event::run),
    ("pgoutput", pgoutput::run),
    ("text", text::run),
    ("wire", wire::run),
];
