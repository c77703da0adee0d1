#!/usr/bin/env bash
# Retrains the bundled miniature from nothing. Stopped at any moment, the same command goes on where it was.
# RFORCE: the command; RUNS: where runs are kept; PROCESSES: training processes, one thread each.
set -euo pipefail
cd "$(dirname "$0")/.."
RFORCE=${RFORCE:-.venv/bin/rforce} RUNS=runs/mini PROCESSES=${PROCESSES:-2}
export OMP_NUM_THREADS=1

train() { "$RFORCE" train "configs/train/mini/$1.yaml" --out "$RUNS/$1" --processes "$PROCESSES"; }

# latents NAME SPLIT COUNT [OPTION...]: all parts at once, one process each
latents() {
  local part jobs=()
  for ((part = 0; part < PROCESSES; part++)); do
    "$RFORCE" data make --split "$2" --count "$3" --vae $RUNS/2_vae_long_clips/final/vae --out "$RUNS/latents/$1" \
      --share "$part/$PROCESSES" "${@:4}" &
    jobs+=($!)
  done
  wait "${jobs[@]}"
}

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
train 8_re_dmd
"$RFORCE" models bundle --out src/reward_forcing/assets/mini --transformer $RUNS/8_re_dmd/final/transformer \
  --teacher $RUNS/5_teacher_longer/final/transformer \
  --vae $RUNS/2_vae_long_clips/final/vae --text $RUNS/3_text_encoder/final --settings configs/generate/mini.yaml \
  --card configs/generate/mini_card.md
train video_features  # what `rforce eval run` measures distances in
rm -rf src/reward_forcing/assets/video_features
cp -r $RUNS/video_features/final/video_features src/reward_forcing/assets/
