# `make demo` and `make test` do all of their own set-up.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Arguments for the demo, like ARGS=--once.
ARGS ?=

.PHONY: demo test check-code clean-demo

# A support desk's tickets are inserted with SQL; agents negotiate and sort them.
demo:
	@tools/setup.sh cc postgres
	@cargo build --locked
	@target/debug/convoke demo $(ARGS)

# Everything: real PostgreSQL, real JavaScript and Python clients.
test:
	@tools/setup.sh cc postgres
	@tests/clients/setup.sh
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked; else cargo test --locked; fi

# What CI checks before the tests.
check-code:
	@cargo fmt --all -- --check
	@cargo clippy --all-targets --locked -- -D warnings
	@cargo clippy --no-default-features --features client --locked -- -D warnings

clean-demo:
	@rm -rf .convoke-demo
