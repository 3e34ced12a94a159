#!/usr/bin/env bash
# Everything that only a GPU can tell, in under 8 minutes on one H200 of 141 GB: kernels against plain operations, the speed
# of a step and of each component, memory held against the report of `--target`, and the same step in PyTorch.
#
#   scripts/gpu_check.sh [VENV]             # that venv's python, or the one on the PATH
#   GPU_CHECK_SMALL=1 scripts/gpu_check.sh  # tiny models, on any machine: only whether the script runs
#
# $OUT (default gpu_check/) gets a JSON file of each part and summary.md, tables to paste into docs/performance.md. A part
# that fails or takes too long leaves the others running; the exit code is then 1.
#
# The python needs hetjax with the extras `gpu` and `test`; for the reports on memory the extra `targets` (where it is
# missing they are skipped), for the comparison torch with CUDA and transformers (likewise). docs/targets.md ("Check a GPU")
# says how to take them along to a machine without a network.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:+$1/bin/python}
python=${python:-python}
out=${OUT:-gpu_check}
mkdir -p "$out"
configs=configs/bench steps=(--warmup 3 --timed_steps 10)
model=(--batch 2 --tokens 4096)
patience=1
if [ -n "${GPU_CHECK_SMALL:-}" ]; then
    export JAX_PLATFORMS=cpu
    configs=configs/bench/small steps=(--warmup 1 --timed_steps 2)
    model=(--tokens 32 --clip_seconds 1 --dtype float32 --timed 1 --remat none)
    patience=5
fi
# JAX takes three quarters of a GPU's memory unless it is told more.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 PYTHONUNBUFFERED=1

parts=()

# part NAME SECONDS FILE COMMAND...: run a command within so many seconds (more on the machines of tiny models); its stdout
# goes to a file, or is shown for "-".
part() {
    local name=$1 limit=$(($2 * patience)) file=$3 start=$SECONDS status=0
    shift 3
    printf '\n== %s\n' "$name"
    if [ "$file" = - ]; then
        timeout "$limit" "$@" || status=$?
    else
        timeout "$limit" "$@" >"$out/$file" || status=$?
    fi
    parts+=("$name=$status=$((SECONDS - start))")
}

# skipped NAME WHY: what a part lacks.
skipped() {
    printf '\n== %s: skipped, %s\n' "$1" "$2"
    parts+=("$1=skipped=0")
}

has() { "$python" -c 'import importlib.util, sys
sys.exit(not all(any(map(importlib.util.find_spec, names.split("|"))) for names in sys.argv[1:]))' "$@"; }

# The reports need no GPU, and are made beside all else.
reports=
if has 'jax_cuda13_plugin|jax_cuda12_plugin'; then
    for name in omni vlm; do
        JAX_PLATFORMS=cpu timeout $((200 * patience)) "$python" train.py --config "$configs/$name.yaml" --target h200x1 \
            --json "$out/$name.target.json" >/dev/null 2>&1 || true
    done &
    reports=$!
fi

part "kernels against plain operations" 120 - "$python" -m pytest tests/gpu -m gpu -n 0 -p no:cacheprovider -rs
for name in omni vlm; do
    part "step of $name" 95 "$name.step.json" "$python" -m hetjax bench step --config "$configs/$name.yaml" \
        "${steps[@]}" --json
done
for name in omni vlm; do
    part "components of $name" 45 "$name.model.json" "$python" -m hetjax bench model --model "$configs/$name.yaml" \
        "${model[@]}" --json
done
if has torch transformers; then
    part "the step of vlm in PyTorch" 60 vlm.torch.json "$python" scripts/vlm_step_torch.py --config "$configs/vlm.yaml" \
        "${steps[@]}"
else
    skipped "the step of vlm in PyTorch" "there is no torch or no transformers"
fi

if [ -n "$reports" ]; then
    wait "$reports"
    for name in omni vlm; do
        part "memory of $name on one H200, as compiled" 5 - test -s "$out/$name.target.json"
    done
else
    skipped "memory as compiled" "there is no jax-cuda13-plugin (the extra targets)"
fi

"$python" scripts/gpu_summary.py "$out" "${parts[@]}" | tee "$out/summary.md"
for each in "${parts[@]}"; do
    case $each in *=0=* | *=skipped=*) ;; *) exit 1 ;; esac
done
