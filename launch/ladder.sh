#!/bin/sh
# Trains the steps A to G of EDM2's ladder on the digits and measures them: launch/ladder.sh runs/ladder
# Finished steps are not trained again. FID is in the features of a digit classifier, which is trained first.
set -e
out=${1:?"usage: launch/ladder.sh <folder>"}
run="python -m diffusion_jax.main"
$run --config configs/digits_classifier.py --workdir "$out/digits_classifier"
for step in A B C D E F G; do
    $run --config "configs/digits_edm2.py:$step" --workdir "$out/$step"
done
$run --mode sweep --workdir "$out" --over run --values A,B,C,D,E,F,G --features "$out/digits_classifier" --num 1000
