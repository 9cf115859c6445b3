.PHONY: build test lint audit sbom advisories chaos chaos-publish soak simulate fuzz mutants demo bench bench-publish bench-micro bench-guard

build:
	cargo build --locked

# The whole suite against the real servers, which it starts and ends by itself.
test: export RUST_TEST_THREADS ?= 4
test:
	@tests/services/install
	@cargo test --locked

# Faults again and again, each run with a seed: docs/faults.md. RUNS of each row from SEED on, a tenth of the slow ones, only of
# ROWS=1,4,12 where that is given, JOBS at once. Goes on where an earlier one of the same sources has ended.
chaos:
	@tests/services/install
	@CHAOS_RUNS=$(RUNS) CHAOS_SEED=$(SEED) CHAOS_ROWS=$(ROWS) CHAOS_JOBS=$(JOBS) \
		cargo test --release --locked --test chaos -- --ignored --exact --nocapture at_length

# One daemon through faults for MINUTES (60), with a release build: docs/faults.md.
soak:
	@tests/services/install
	@SOAK_MINUTES=$(MINUTES) CHAOS_SEED=$(SEED) \
		cargo test --release --locked --test chaos -- --ignored --exact --nocapture soak

# The table of all its runs, into docs/faults.md.
chaos-publish:
	@cargo test --release --locked --test chaos -- --ignored --exact publish

# RUNS schedules of made-up servers, from SEED on, JOBS at once: docs/faults.md. HISTORY=1 prints what happens in the first.
simulate:
	@SIMULATE_RUNS=$(RUNS) SIMULATE_SEED=$(SEED) SIMULATE_JOBS=$(JOBS) SIMULATE_TELL=$(HISTORY) \
		cargo test --locked --profile simulation --test simulation -- --ignored --exact --nocapture at_length

# Inputs that nobody has thought of, for SECONDS each target: tests/fuzz/README.md. What is new goes to target/fuzz.
fuzz:
	@for target in $(or $(TARGET),$(basename $(notdir $(wildcard tests/fuzz/targets/*.rs)))); do \
		mkdir -p target/fuzz/corpus/$$target; echo "== $$target"; \
		cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer none $$target \
			target/fuzz/corpus/$$target tests/fuzz/corpus/$$target tests/fuzz/found/$$target -- \
			-max_total_time=$(or $(SECONDS),60) -max_len=4096 -timeout=10 || exit 1; \
	done

# Small changes to the code that a test has to notice: docs/testing.md. SHARD=0/8 does an eighth of them.
mutants:
	@cargo mutants --output target $(if $(SHARD),--shard $(SHARD))

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- --deny warnings

# What it is made of: held to deny.toml, and written down in target/sbom/walhouse.cdx.json.
audit:
	@.ci/audit

sbom:
	@.ci/audit sbom

# Known weaknesses of what it is made of. Fetches their database: not part of every change.
advisories:
	@.ci/audit advisories

# KEEP=1 leaves everything running; DEMO_SECONDS is how long the load lasts.
demo:
	@docker/demo/run

# benches/README.md says what is measured; BENCH=smoke only shows that it works.
bench:
	@python3 benches/suite

# The last result, into benches/README.md.
bench-publish:
	@python3 benches/suite publish

bench-micro:
	cargo bench --locked --bench micro

# Instructions per row, which do not depend on the machine's load.
bench-guard:
	@cargo bench --locked --bench guard
