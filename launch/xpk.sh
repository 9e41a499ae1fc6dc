#!/usr/bin/env bash
# GKE through XPK: one workload on a cluster that XPK made, restarted by it after a preemption.
#
#   export CLUSTER=pod NAME=dit TYPE=v5litepod-256 SLICES=1 PROJECT=my-project ZONE=us-east5-b IMAGE=gcr.io/my-project/diffusion_jax
#   launch/xpk.sh train --config configs/imagenet256_dit_xl2.py --workdir /mnt/shared/dit
#   launch/xpk.sh list
#   launch/xpk.sh delete
#
# The working folder must be seen by all pods: a bucket (gcsfuse) or Filestore that the cluster mounts (xpk storage).
# --dry-run before the first word prints every command. RESTARTS is how often a workload that failed is started again.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
need CLUSTER NAME TYPE PROJECT ZONE IMAGE
SLICES=${SLICES:-1}
RESTARTS=${RESTARTS:-100}
where=("--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")

train() {
    run xpk workload create "${where[@]}" "--workload=$NAME" "--tpu-type=$TYPE" "--num-slices=$SLICES" "--docker-image=$IMAGE" \
        "--max-restarts=$RESTARTS" "--command=$(line python3 -m diffusion_jax.main --distributed "$@")"
}

list() { run xpk workload list "${where[@]}"; }
delete() { run xpk workload delete "${where[@]}" "--workload=$NAME"; }

case "${1:-}" in
    train | list | delete) "$@" ;;
    *) echo "usage: launch/xpk.sh [--dry-run] train ... | list | delete" >&2; exit 2 ;;
esac
