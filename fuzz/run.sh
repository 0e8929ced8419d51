#!/usr/bin/env bash
# Fuzzes one target for so many seconds: fuzz/run.sh wire 600. Needs a nightly compiler, and no cargo-fuzz: the flags
# are those that it would give. What was found stands in fuzz/artifacts, what was learnt in fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?usage: fuzz/run.sh TARGET [SECONDS]}
seconds=${2:-600}
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage+=" -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
export RUSTFLAGS="--cfg fuzzing $coverage -Cdebug-assertions -Coverflow-checks"
case $target in
  channel | completion | pgoutput) features=(--features daemon) ;;
  *) features=() ;;
esac
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
cargo +nightly build --release --no-default-features "${features[@]}" --target "$triple" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
# Chance does not write the first event of a format; a folder of examples does.
seeds=()
[ -d "seeds/$target" ] && seeds=("seeds/$target")
exec nice -n 19 "target/$triple/release/$target" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 \
  -artifact_prefix="artifacts/$target/" "corpus/$target" "${seeds[@]}"
