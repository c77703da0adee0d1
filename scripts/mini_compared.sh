#!/usr/bin/env bash
# What the bundled student is compared with, after scripts/mini.sh: plain distribution matching, the causal start without
# any, and both ODE starts, all on the same prompts and noise. Stopped at any moment, the same command goes on.
# PROMPTS: held-out prompts of 5 s; a quarter of them are streamed for a minute as well.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/mini_steps.sh
PROMPTS=${PROMPTS:-256} PAIRS=$RUNS/ode_pairs COMPARED=$RUNS/compared

# evaluate NAME [OPTION...]: the suite, made by the student of a run
evaluate() {
  shared eval run --suite mini --prompts "$PROMPTS" --model $COMPARED/model --weights "$RUNS/$1/final/transformer" \
    --out "$COMPARED/$1" "${@:2}"
}

train ode_causal_teacher
shared data ode-pairs --teacher $TEACHER --text $TEXT --out $PAIRS/bidirectional --count 600
shared data ode-pairs --teacher $RUNS/ode_causal_teacher/final/transformer --causal --context $RUNS/latents/train \
  --text $TEXT --out $PAIRS/causal --count 600
train ode_from_bidirectional
train ode_from_causal
train 8_dmd_longer
[ -e $COMPARED/model ] || "$RFORCE" models bundle --out $COMPARED/model \
  --transformer $RUNS/8_re_dmd/final/transformer --vae $VAE --text $TEXT --settings configs/generate/mini.yaml
for student in 8_re_dmd 8_dmd_longer 6_causal; do evaluate $student; done
for student in ode_from_bidirectional ode_from_causal; do # trained on whole clips, without a sink
  evaluate $student --set window_frames=21 --set 'sink={kind: none}'
done
for other in 8_dmd_longer 6_causal ode_from_bidirectional ode_from_causal; do
  "$RFORCE" eval compare $COMPARED/8_re_dmd $COMPARED/$other
done
