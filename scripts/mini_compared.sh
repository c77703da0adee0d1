#!/usr/bin/env bash
# What the bundled student is compared with, after scripts/mini.sh: plain distribution matching, the causal start without
# any, and both ODE starts, all on the same prompts and noise. Stopped at any moment, the same command goes on.
# RFORCE, PROCESSES: as there. PROMPTS: held-out prompts of 5 s; a quarter of them are streamed for a minute as well.
set -euo pipefail
cd "$(dirname "$0")/.."
RFORCE=${RFORCE:-.venv/bin/rforce} RUNS=runs/mini PROCESSES=${PROCESSES:-2} PROMPTS=${PROMPTS:-256}
TEACHER=$RUNS/5_teacher_longer/final/transformer CAUSAL_TEACHER=$RUNS/ode_causal_teacher/final/transformer
TEXT=$RUNS/3_text_encoder/final VAE=$RUNS/2_vae_long_clips/final/vae
export OMP_NUM_THREADS=1

train() { "$RFORCE" train "configs/train/mini/$1.yaml" --out "$RUNS/$1" --processes "$PROCESSES"; }

# shared COMMAND...: all parts of a command at once, one process each
shared() {
  local part jobs=()
  for ((part = 0; part < PROCESSES; part++)); do
    "$RFORCE" "$@" --share "$part/$PROCESSES" &
    jobs+=($!)
  done
  wait "${jobs[@]}"
}

# evaluate NAME [OPTION...]: the suite, made by the student of a run
evaluate() {
  [ -e "$RUNS/compared/$1/results.json" ] && return
  shared eval run --suite mini --prompts "$PROMPTS" --model $RUNS/compared/model \
    --weights "$RUNS/$1/final/transformer" --out "$RUNS/compared/$1" "${@:2}"
}

train 7_dmd
train ode_causal_teacher
shared data ode-pairs --teacher $TEACHER --text $TEXT --out $RUNS/ode_pairs/bidirectional --count 600
shared data ode-pairs --teacher $CAUSAL_TEACHER --causal --context $RUNS/latents/train --text $TEXT \
  --out $RUNS/ode_pairs/causal --count 600
train ode_from_bidirectional
train ode_from_causal
[ -e $RUNS/compared/model ] || "$RFORCE" models bundle --out $RUNS/compared/model \
  --transformer $RUNS/8_re_dmd/final/transformer --vae $VAE --text $TEXT --settings configs/generate/mini.yaml
for student in 8_re_dmd 7_dmd 6_causal; do evaluate $student; done
for student in ode_from_bidirectional ode_from_causal; do # trained on whole clips, without a sink
  evaluate $student --set window_frames=21 --set 'sink={kind: none}'
done
for other in 7_dmd 6_causal ode_from_bidirectional ode_from_causal; do
  "$RFORCE" eval compare $RUNS/compared/8_re_dmd $RUNS/compared/$other
done
