#!/usr/bin/env bash
# Queued resources: wait for one slice or several (multislice), train as soon as they are there.
#
#   export NAME=dit ZONE=us-east5-b TYPE=v5litepod-256 PROJECT=my-project SLICES=2
#   launch/queued.sh request
#   launch/queued.sh state
#   launch/queued.sh install
#   launch/queued.sh train --config configs/imagenet256_dit_xl2.py --workdir /mnt/shared/dit --config.mesh.fsdp=256
#   launch/queued.sh delete
#
# --dry-run before the first word prints every command. SPOT=1 asks for preemptible slices.
# The working folder must be seen by all workers: mount a bucket (gcsfuse) or Filestore on each.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
need NAME ZONE TYPE PROJECT
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SLICES=${SLICES:-1}
SOURCE=${SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}
queue=(gcloud compute tpus queued-resources)
where=("--zone=$ZONE" "--project=$PROJECT")

request() {
    local nodes=("--node-id=$NAME")
    if [ "$SLICES" -gt 1 ]; then
        nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
    fi
    run "${queue[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--runtime-version=$VERSION" "${nodes[@]}" ${SPOT:+--spot}
}

state() { run "${queue[@]}" describe "$NAME" "${where[@]}" "--format=value(state.state)"; }
delete() { run "${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet; }
on_all() { run "${queue[@]}" ssh "$NAME" "${where[@]}" --node=all --worker=all "--command=$1"; }
train() { on_all "cd diffusion_jax && $(line python3 -m diffusion_jax.main --distributed "$@")"; }

install() {
    on_all "rm -rf diffusion_jax"
    run "${queue[@]}" scp --recurse "$SOURCE" "$NAME:diffusion_jax" "${where[@]}" --node=all --worker=all
    on_all "cd diffusion_jax && pip install --quiet '.[tpu]'"
}

case "${1:-}" in
    request | state | install | train | delete) "$@" ;;
    *) echo "usage: launch/queued.sh [--dry-run] request | state | install | train ... | delete" >&2; exit 2 ;;
esac
