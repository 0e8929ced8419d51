# `make demo` and `make test` do all of their own set-up.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Arguments for the demo, like ARGS=--once, and for bench, like ARGS='fanout --seconds 3'.
ARGS ?=
# Where `make web` serves the pages, like LISTEN=0.0.0.0:8080 for other machines.
LISTEN ?= 127.0.0.1:8080

.PHONY: demo research web dashboard test test-web test-hostile check-code check-deps bench bench-compare bench-peers bench-telemetry clean-demo

# A support desk's tickets are inserted with SQL; agents negotiate and sort them.
demo:
	@tools/setup.sh cc postgres
	@cargo build --locked
	@cargo run --locked --quiet -- demo $(ARGS)

# Three agents look into a question with a real model of 135 million parameters, offline; a question of your own by
# ARGS='"Which bridge is the oldest?"', another model by ARGS='--model-url http://127.0.0.1:8080/v1'.
research:
	@tools/setup.sh cc postgres
	@cargo build --locked
	@[ -x examples/research/.venv/bin/python ] || python3 -m venv examples/research/.venv
	@examples/research/.venv/bin/pip install --quiet --no-deps -r examples/research/requirements.txt
	@examples/research/.venv/bin/python examples/research/run.py $(ARGS)

# Chat, call, editor, board, analytics and agent console as pages; prints their addresses.
web:
	@tools/setup.sh cc postgres
	@examples/web/setup.sh
	@cargo build --locked
	@examples/web/with-node npm --silent run build -- --logLevel warn
	@examples/web/with-node node run.mjs --listen $(LISTEN) $(ARGS)

# Builds the page of the daemon into web/dashboard/dist, which is committed; cargo needs no Node.js.
dashboard:
	@examples/web/setup.sh ../../web/dashboard
	@examples/web/with-node npm --silent --prefix ../../web/dashboard run build -- --logLevel warn

# Everything: real PostgreSQL, real JavaScript and Python clients, real browsers.
test:
	@tools/setup.sh cc postgres
	@tests/clients/setup.sh
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --workspace; else cargo test --locked --workspace --all-targets; fi
	@cargo test --doc --locked --quiet
	@$(MAKE) --no-print-directory test-web

# The suites of clients and tasks on databases with unfavorable settings, encoding and rights. `make test` runs the
# first test of each file there (tests/it/hostile.rs), because all of them take as long as `make test` again.
test-hostile:
	@tools/setup.sh cc postgres
	@tests/clients/setup.sh
	@if cargo nextest --version >/dev/null 2>&1; then CONVOKE_TEST_DATABASE=hostile cargo nextest run --locked --test it -E 'test(/^(changes|conformance|realtime|resume|agent|api|daemon|messages|remote|task)::/)'; else CONVOKE_TEST_DATABASE=hostile cargo test --locked --test it -- changes:: conformance:: realtime:: resume:: agent:: api:: daemon:: messages:: remote:: task::; fi

# The dashboard and the pages of examples/web: types, unit tests, and Chromium with several people.
test-web:
	@tools/setup.sh cc postgres chromium
	@examples/web/setup.sh
	@examples/web/setup.sh ../../web/dashboard
	@cargo build --locked
	@examples/web/with-node npm --silent --prefix ../../web/dashboard run test
	@examples/web/with-node npm --silent run test

# What CI checks before the tests.
check-code:
	@cargo fmt --all -- --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@cargo clippy --no-default-features --features client --locked -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked --quiet

# One benchmark of a release build, like ARGS='fanout --seconds 3'; see "Benchmarks" in CONTRIBUTING.md.
bench:
	@tools/setup.sh cc postgres
	@cargo run --locked --release --quiet -p convoke-bench -- $(or $(ARGS),--help)

# The last recorded run of a benchmark beside the one before it, like ARGS=fanout.
bench-compare:
	@cargo run --locked --release --quiet -p convoke-bench -- compare $(or $(ARGS),fanout)

# Convoke beside Graphile Worker and pgbench, in turn on one PostgreSQL, like ARGS='--runs 5'.
bench-peers:
	@tools/setup.sh cc postgres
	@examples/web/setup.sh ../../bench/peers
	@cargo build --locked --release --quiet -p convoke-bench
	@cd examples/web && CONVOKE_DATABASE__DATA_DIR=../../.convoke ./with-node ../../target/release/convoke-bench peers $(ARGS)

# Tasks with and without the export of their traces to a collector on this machine, in turn, like ARGS='--tasks 5000'.
bench-telemetry:
	@tools/setup.sh cc postgres
	@cargo build --locked --release --quiet -p convoke-bench
	@target/release/convoke-bench pairs --runs $(or $(RUNS),5) --before 'target/release/convoke-bench tasks' --after 'target/release/convoke-bench tasks --collector' -- $(ARGS)

# Licences, sources and forbidden crates of the dependencies, by deny.toml. By hand: see CONTRIBUTING.md.
check-deps:
	@cargo deny --version >/dev/null 2>&1 || { echo 'cargo-deny is missing: cargo install --locked cargo-deny' >&2; exit 1; }
	@cargo deny --locked check bans licenses sources

clean-demo:
	@rm -rf .convoke-demo .convoke-research .convoke-web .convoke-web-2
