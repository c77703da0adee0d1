#!/usr/bin/env bash
# Retrains the bundled miniature from nothing. Stopped at any moment, the same command goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/mini_steps.sh

# latents NAME SPLIT COUNT [OPTION...]
latents() { shared data make --split "$2" --count "$3" --vae $VAE --out "$RUNS/latents/$1" "${@:4}"; }

train 1_vae_short_clips
train 2_vae_long_clips
train 3_text_encoder
latents validation validation 128
latents train train 8192
latents turning train 4096 --kinds spin,pulse,orbit,swing --first 100000
latents switches train 2048 --switch-chunk 3
train 4_teacher
train 5_teacher_longer
train 6_causal
train 7_dmd
train reader  # what the reward of the next stage reads clips with
train 8_re_dmd
"$RFORCE" models bundle --out src/reward_forcing/assets/mini --transformer $RUNS/8_re_dmd/final/transformer \
  --teacher $TEACHER --vae $VAE --text $TEXT --settings configs/generate/mini.yaml --card configs/generate/mini_card.md
train video_features  # what `rforce eval run` measures distances in
rm -rf src/reward_forcing/assets/video_features
cp -r $RUNS/video_features/final/video_features src/reward_forcing/assets/
