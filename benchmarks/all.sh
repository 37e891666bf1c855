#!/usr/bin/env bash
# Renews RESULTS.md as a whole at one commit: every benchmark of a CPU, one after another, then the page.
#
#   benchmarks/all.sh [ENVS]   # about 45 minutes on two idle cores; ENVS: where `peers.py --make ENVS` put the other frameworks
#
# sites_round.py needs fedcmp[sites]; SITES_PYTHON names a Python that has it. One that fails does not keep the others from
# running: its record stays as it was. The exit code is 1 then.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 WANDB_MODE=offline
failed=()
go() { # PYTHON WORDS...
  echo "== $(date +%T) ${*:2}"
  "$@" || failed+=("${*:2}")
  echo "== $(date +%T) end of $2"
}
mine() { go python "$@"; }
# minutes: 4, 3, 4
mine benchmarks/limit.py
mine benchmarks/aggregation.py
mine benchmarks/canonical_scale.py --shape 7b
# 5, 4, 1, 2, 1, 2
mine benchmarks/startup.py
mine benchmarks/many_clients.py
mine benchmarks/growth.py
mine benchmarks/server_memory.py
mine benchmarks/tried.py
mine benchmarks/ensemble.py
# 5, 4, less than 1
mine benchmarks/scale_data.py --records 1000000 --clients 10000 --pictures 768 --workers 0 1 2
go "${SITES_PYTHON:-python}" benchmarks/sites_round.py
mine benchmarks/llava_shape.py --shape tiny --device cpu --slots 2 --clients 4 --rounds 5 --steps 4 --batch 4 --lr 1e-2 \
  --name llava_tiny --out benchmarks/results
if [ $# -gt 0 ]; then # 10; NVFlare would take half an hour for 64 clients
  mine benchmarks/peers.py --envs "$1" --only fedcmp pfl flower nvflare --tasks train overhead-8
  mine benchmarks/peers.py --envs "$1" --only fedcmp pfl flower --tasks overhead-64
fi
mine benchmarks/write_results.py
printf 'failed: %s\n' "${failed[@]:-none}"
[ ${#failed[@]} -eq 0 ]
