#!/usr/bin/env bash
# The pictures and tables of docs/controlnet.md, after train.sh: what is drawn along some edges for four prompts; how soon the ControlNet
# follows, by its checkpoints; and how well ControlNets of other numbers of copied blocks do after 600 steps. Of six blocks five can be
# copied, since a copy corrects the block after it.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/tiny
export CANDLE_NUM_THREADS=1
pixart() { target/native/release/pixart "$@"; }

# Four prompts along the edges docs/controlnet/NAME.png, to NAME-1.png and so on.
along() {
    local folder
    folder=$(mktemp -d)
    printf '%s\n' "${@:2}" > "$folder/prompts.txt"
    pixart generate --prompts-file "$folder/prompts.txt" --control-image "docs/controlnet/$1.png" --seed 7 --output "$folder/drawn" --quiet
    local number=0
    for picture in "$folder"/drawn/*.png; do
        cp "$picture" "docs/controlnet/$1-$((++number)).png"
    done
    rm -r "$folder"
}
along heart "a red heart by the sea" "a pink heart at night" "a striped green heart" "a purple heart on a pale yellow background"
along tree "a green tree in a meadow" "a dotted orange tree" "a white tree at night" "a brown tree on a grey background"
along diamond "a blue diamond above a green triangle" "a red diamond above a yellow triangle at night" \
    "a black diamond above an orange triangle on a pale pink background" "a striped pink diamond above a brown triangle"
along cloud "a yellow cloud in a meadow" "a white cloud in a meadow" "a purple cloud in a meadow" "a dotted red cloud in a meadow"

# F1 of edges and share of right colours, of pictures along the edges of so many scenes.
measure() {
    pixart eval control --control "$1" --scenes "$2" --quiet |
        awk '/^along/ { along = $4 " | " $5 " % | "; time = $7 } /^without/ { printf "%s%.2f\n", along, time / $6 }'
}

echo "| step | edges, F1 | colours | time |"
for checkpoint in "$runs"/controlnet/checkpoints/step-*; do
    echo "| $((10#${checkpoint##*-})) | $(measure "$checkpoint/network" 50) |"
done

echo "| copied blocks | edges, F1 | colours | time |"
for copies in 1 2 3 5; do
    recipe=$(mktemp --suffix .toml)
    sed "0,/^steps = .*/s//steps = 600/; s/^num_layers = .*/num_layers = $copies/" recipes/tiny/controlnet.toml > "$recipe"
    pixart train "$recipe" --output "$runs/controlnet-$copies" --quiet
    rm "$recipe"
    echo "| $copies of 6 | $(measure "$runs/controlnet-$copies/network" 300) |"
done
