#!/usr/bin/env bash
# Several processes on this machine, joined as those of a pod are: the same code path, to try before a pod is paid for.
#
#   PROCESSES=2 DEVICES=4 launch/local.sh --config configs/digits.py:tiny --workdir runs/tiny
#
# --dry-run before the first word prints every command. DEVICES is the number of (host) devices of each process.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
PROCESSES=${PROCESSES:-2}
DEVICES=${DEVICES:-1}
PORT=${PORT:-12321}
if [ "$#" -eq 0 ]; then
    echo "usage: launch/local.sh [--dry-run] --config ... --workdir ..." >&2
    exit 2
fi
pids=()
trap 'kill "${pids[@]}" 2> /dev/null || true' EXIT                  # Ctrl-C does not reach what runs in the background
for ((i = 0; i < PROCESSES; i++)); do
    process=(env "JAX_COORDINATOR_ADDRESS=localhost:$PORT" "JAX_NUM_PROCESSES=$PROCESSES" "JAX_PROCESS_ID=$i" JAX_PLATFORMS=cpu
        "XLA_FLAGS=--xla_force_host_platform_device_count=$DEVICES" python3 -m diffusion_jax.main --distributed "$@")
    if [ -n "$DRY_RUN" ]; then
        run "${process[@]}"
    else
        "${process[@]}" &
        pids+=("$!")
    fi
done
for pid in "${pids[@]}"; do
    wait "$pid"
done
