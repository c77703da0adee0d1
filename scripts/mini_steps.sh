# Sourced by the miniature's recipes: where things are, and how a stage is run.
# RFORCE: the command; RUNS: where runs are kept; PROCESSES: processes of a stage, one thread each.
RFORCE=${RFORCE:-.venv/bin/rforce} RUNS=runs/mini PROCESSES=${PROCESSES:-2}
TEACHER=$RUNS/5_teacher_longer/final/transformer VAE=$RUNS/2_vae_long_clips/final/vae TEXT=$RUNS/3_text_encoder/final
export OMP_NUM_THREADS=1

train() { "$RFORCE" train "configs/train/mini/$1.yaml" --out "$RUNS/$1" --processes "$PROCESSES"; }

# shared COMMAND...: all parts of a command at once, one process each
shared() {
  local part job jobs=()
  for ((part = 0; part < PROCESSES; part++)); do
    "$RFORCE" "$@" --share "$part/$PROCESSES" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job"; done # one by one, for `wait` with several tells of the last only
}
