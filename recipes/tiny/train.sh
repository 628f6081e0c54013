#!/usr/bin/env bash
# Makes the bundled model from nothing, in runs/tiny, and assembles it in assets/tiny. On two cores
# it takes some hours; it can be stopped at any time and goes on when it is started again. Arguments go to every step, such as --device cuda.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/tiny

# Built for this machine: sums of gradients in bf16 are several times as fast where the processor adds them.
export RUSTFLAGS="${RUSTFLAGS:-} -C target-cpu=native"
# Each worker of a recipe is one thread, which candle's own would only disturb.
export CANDLE_NUM_THREADS=1
cargo build --release --package pixart-cli --target-dir target/native
pixart() { target/native/release/pixart "$@"; }
train() { pixart train "recipes/tiny/$1.toml" --output "$runs/$1" "${@:2}"; }

train autoencoder "$@"
train autoencoder-small "$@"
pixart features --scenes 51200 --size 128 --vae $runs/autoencoder/network --output $runs/features "$@"
train text-encoder "$@"
train teacher-coarse "$@"
train teacher "$@"
train lcm "$@"
train lcm-sharp "$@"
train lcm-matched "$@"
train lcm-lora "$@"
pixart features --scenes 8192 --size 128 --vae $runs/autoencoder/network --control-type canny --output $runs/features-with-edges "$@"
train controlnet "$@"

# Written beside and moved, so that a half-made model never takes the place of a whole one.
new=$(mktemp -d $runs/assembled-XXXXXX)
trap 'rm -rf "$new"' EXIT
pixart convert $runs/teacher/network --dtype f16 --output "$new/teacher"
# The small autoencoder has the latents of the one that all were trained with.
pixart convert $runs/teacher/network --transformer $runs/lcm-matched/network --vae $runs/autoencoder-small/network --scheduler lcm --dtype f16 \
    --output "$new/tiny"
mv "$new/teacher/transformer" "$new/tiny/teacher"
pixart convert $runs/lcm-lora/network --dtype f16 --output "$new/tiny/lcm-lora"
pixart convert $runs/controlnet/network --dtype f16 --output "$new/tiny/controlnet"
rm -rf assets/tiny
mv "$new/tiny" assets/tiny
du -sb assets/tiny
