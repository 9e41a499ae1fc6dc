#!/usr/bin/env bash
# Cloud TPU VM slices: create one, install, train on all its workers, go on after a preemption, delete it.
#
#   export NAME=dit ZONE=us-central2-b TYPE=v4-32 PROJECT=my-project
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh train --config configs/imagenet256_dit_xl2.py --workdir /mnt/shared/dit
#   launch/tpu_vm.sh keep --config configs/imagenet256_dit_xl2.py --workdir /mnt/shared/dit      # create, install, train until it ends
#   launch/tpu_vm.sh delete
#
# --dry-run before the first word prints every command. SPOT=1 asks for a preemptible slice. VERSION is the runtime of the VMs.
# The working folder must be seen by all workers: mount a bucket (gcsfuse) or Filestore on each; the same command resumes from it.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
need NAME ZONE TYPE PROJECT
VERSION=${VERSION:-tpu-ubuntu2204-base}
SOURCE=${SOURCE:-$(cd "$(dirname "$0")/.." && pwd)}
tpu=(gcloud compute tpus tpu-vm)
where=("--zone=$ZONE" "--project=$PROJECT")

on_all() { run "${tpu[@]}" ssh "$NAME" "${where[@]}" --worker=all "--command=$1"; }
create() { run "${tpu[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--version=$VERSION" ${SPOT:+--spot}; }
delete() { run "${tpu[@]}" delete "$NAME" "${where[@]}" --quiet; }
train() { on_all "cd diffusion_jax && $(line python3 -m diffusion_jax.main --distributed "$@")"; }

state() { run "${tpu[@]}" describe "$NAME" "${where[@]}" "--format=value(state)"; }

install() {
    on_all "rm -rf diffusion_jax" &&
        run "${tpu[@]}" scp --recurse "$SOURCE" "$NAME:diffusion_jax" "${where[@]}" --worker=all &&
        on_all "cd diffusion_jax && pip install --quiet '.[tpu]'"
}

# A preempted slice is gone for good: until training ends well, make a new one and go on from the last checkpoint. One that is
# still there a minute after was not preempted: then the command is wrong, and another slice would not mend it.
keep() {
    create
    until install && train "$@"; do
        sleep 60
        if [ "$(state)" = READY ]; then
            echo "error: the slice is there but the command failed, see above: mend it, or end with $0 delete" >&2
            exit 1
        fi
        delete || true
        until create; do sleep 60; done
    done
}

case "${1:-}" in
    create | install | train | keep | delete) "$@" ;;
    *) echo "usage: launch/tpu_vm.sh [--dry-run] create | install | train ... | keep ... | delete" >&2; exit 2 ;;
esac
