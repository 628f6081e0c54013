#!/usr/bin/env bash
# The tables of docs/controlnet.md, after train.sh: how soon the ControlNet follows, by its checkpoints, and how well ControlNets of
# other numbers of copied blocks do after 1000 steps; of six blocks five can be copied, since a copy corrects the block after it.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/tiny
export CANDLE_NUM_THREADS=1
pixart() { target/native/release/pixart "$@"; }

# F1 of edges and share of right colours, of pictures along the edges of so many scenes.
measure() {
    pixart eval control --control "$1" --scenes "$2" --quiet | awk '/^along/ { print $4 " | " $5 " %" }'
}

echo "| step | edges, F1 | colours |"
for checkpoint in "$runs"/controlnet/checkpoints/step-*; do
    echo "| $((10#${checkpoint##*-})) | $(measure "$checkpoint/network" 50) |"
done

echo "| copied blocks | edges, F1 | colours |"
for copies in 1 2 3 5; do
    recipe=$(mktemp --suffix .toml)
    sed "s/^steps = 2500/steps = 1000/; s/^num_layers = .*/num_layers = $copies/" recipes/tiny/controlnet.toml > "$recipe"
    pixart train "$recipe" --output "$runs/controlnet-$copies" --quiet
    rm "$recipe"
    echo "| $copies of 6 | $(measure "$runs/controlnet-$copies/network" 300) |"
done
