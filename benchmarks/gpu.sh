#!/usr/bin/env bash
# All that several processes and a GPU change, on the GPUs of this machine, in at most 8 minutes:
#
#     benchmarks/gpu.sh [RESULTS]        # default: benchmarks/results/gpu.jsonl
#
# Appends one line of JSON a step, with machine and commit. Exits 1 if a step failed, 2 where there is
# no GPU. PYTHON chooses the interpreter; what needs two GPUs or deepspeed is left out without them.
set -uo pipefail

cd "$(dirname "$0")/.."
python="${PYTHON:-python}"
results="${1:-benchmarks/results/gpu.jsonl}"
export PYTHONPATH="src:tests:.${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false

gpus="$("$python" -c 'import torch; print(torch.cuda.device_count())')" || exit 1
if [ "$gpus" -lt 1 ]; then
    echo "gpu.sh: no GPU to see here; nothing was measured." >&2
    exit 2
fi
if [ "$gpus" -gt 8 ]; then gpus=8; fi
machine="$(hostname): $gpus x $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"
commit="$(git describe --always --dirty 2>/dev/null || echo unknown)"
deadline=$((SECONDS + 480))
failed=0
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

# step NAME LIMIT_S WORDS...: run a command, and append what came of it: its last line if that is JSON.
step() {
    local name="$1" limit="$2" left=$((deadline - SECONDS)) begun="$SECONDS" code
    shift 2
    if [ "$left" -lt "$limit" ]; then limit=$((left > 1 ? left : 1)); fi
    timeout "$limit" "$python" "$@" >"$log" 2>&1
    code=$?
    if [ "$code" -ne 0 ]; then failed=1; fi
    "$python" - "$name" "$code" "$((SECONDS - begun))" "$machine" "$commit" "$log" <<'END' >>"$results"
import json, sys

name, code, seconds, machine, commit, log = sys.argv[1:]
lines = open(log, errors="replace").read().splitlines() or [""]
try:
    result = json.loads(lines[-1])
except ValueError:
    result = lines[-40 if int(code) else -12 :]
record = {"step": name, "exit": int(code), "seconds": int(seconds), "machine": machine}
print(json.dumps({**record, "commit": commit, "result": result}))
END
    echo "$name: $([ "$code" -eq 0 ] && echo done || echo "failed ($code)"), $((SECONDS - begun)) s"
}

step training 90 -m benchmarks.speed.training
step ema 60 -m benchmarks.speed.ema --only times memory
step serving 120 -m benchmarks.serving --rounds 1 --tokens 32 --results "$(mktemp -u).jsonl.gz"
step answering 60 -m benchmarks.speed.answering --rounds 1 --samples 40 --processes "$gpus" \
    --results "$(mktemp -u).jsonl.gz"
if [ "$gpus" -ge 2 ]; then
    step settings 180 -m pytest -q -p no:cacheprovider tests/distributed/test_sharded.py
    step ddp 60 -m benchmarks.speed.training --processes "$gpus"
    step fsdp2 60 -m benchmarks.speed.training --processes "$gpus" --set training.fsdp=true
    ask='import deepspeed; from lcia.distributed.launch import launch_of'
    ask="$ask; launch_of({'deepspeed': {'zero_optimization': {'stage': 2}}})"
    if WORLD_SIZE=2 "$python" -c "$ask" 2>"$log"; then
        for stage in 1 2 3; do
            step "zero$stage" 60 -m benchmarks.speed.training --processes "$gpus" \
                --set "training.deepspeed={zero_optimization: {stage: $stage}}"
        done
    else
        echo "zero: left out: $(tail -n 1 "$log")"
    fi
else
    echo "settings, ddp, fsdp2, zero: need two GPUs, and there is one."
fi
exit "$failed"
