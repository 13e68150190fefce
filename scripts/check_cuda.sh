#!/usr/bin/env bash
# Checks that the feature `cuda` compiles, on a machine without CUDA or a GPU, and that the program built with it starts
# there and says that there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
toolkit=target/cuda-toolkit
[ -e "$toolkit/env" ] || python3 scripts/cuda_toolkit.py "$toolkit"
# shellcheck source=/dev/null
source "$toolkit/env"
cargo clippy --release --features lapidary-cli/cuda --workspace --all-targets --target-dir target/cuda -- -D warnings
cargo build --release --features cuda --target-dir target/cuda
if target/cuda/release/lapidary --device cuda embed text 2> target/cuda/said; then
    echo "there is a GPU here"
else
    grep -q "no GPU can be used" target/cuda/said
fi
