.PHONY: build test lint demo

build:
	cargo build --locked

# The whole suite against the real servers, which it starts and ends by itself.
test:
	@tests/services/install
	@cargo test --locked

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- --deny warnings

# KEEP=1 leaves everything running; DEMO_SECONDS is how long the load lasts.
demo:
	@docker/demo/run
