#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhouse_fuzz::config::run(data));
