#!/usr/bin/env bash
# Makes the bundled model from nothing, in runs/tiny, and assembles it in assets/tiny. On two cores it takes about a day; it
# can be stopped at any time and goes on when it is started again. Arguments go to every step, such as --device cuda.
set -euo pipefail
cd "$(dirname "$0")/../.."

pixart() { cargo run --release --quiet -- "$@"; }
train() { pixart train "recipes/tiny/$1.toml" --output "runs/tiny/$1" "${@:2}"; }

train autoencoder "$@"
train autoencoder-whole "$@"
pixart features --scenes 98304 --size 128 --vae runs/tiny/autoencoder-whole/network --output runs/tiny/features "$@"
train teacher "$@"
pixart features --scenes 98304 --model runs/tiny/teacher/network --output runs/tiny/features-with-text "$@"
train lcm "$@"
train lcm-lora "$@"
