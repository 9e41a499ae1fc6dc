#!/usr/bin/env bash
# Cloud TPU VM slices: create one, install, train on all its workers, go on after a preemption, delete it.
#
#   export NAME=dit ZONE=us-central2-b TYPE=v4-32 PROJECT=my-project
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh train --config configs/imagenet256_dit_xl2.py --workdir gs://bucket/dit
#   launch/tpu_vm.sh keep --config configs/imagenet256_dit_xl2.py --workdir gs://bucket/dit      # create, install, train until it ends
#   launch/tpu_vm.sh delete
#
# --dry-run before the first word prints every command. SPOT=1 asks for a preemptible slice. VERSION is the runtime of the VMs.
# The working folder must be seen by all workers; the same command resumes from it.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
need NAME ZONE TYPE PROJECT
VERSION=${VERSION:-tpu-ubuntu2204-base}
SOURCE=${SOURCE:-$(dirname "$0")/..}
tpu=(gcloud compute tpus tpu-vm)
where=("--zone=$ZONE" "--project=$PROJECT")

on_all() { run "${tpu[@]}" ssh "$NAME" "${where[@]}" --worker=all "--command=$1"; }
create() { run "${tpu[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--version=$VERSION" ${SPOT:+--spot}; }
delete() { run "${tpu[@]}" delete "$NAME" "${where[@]}" --quiet; }
train() { on_all "cd diffusion_jax && $(line python3 -m diffusion_jax.main --distributed "$@")"; }

install() {
    run "${tpu[@]}" scp --recurse "$SOURCE" "$NAME:diffusion_jax" "${where[@]}" --worker=all
    on_all "cd diffusion_jax && pip install --quiet '.[tpu]'"
}

# A preempted slice is gone for good: until training ends well, make a new one and go on from the last checkpoint.
keep() {
    create
    install
    until train "$@"; do
        delete || true
        create
        install
    done
}

case "${1:-}" in
    create | install | train | keep | delete) "$@" ;;
    *) echo "usage: launch/tpu_vm.sh [--dry-run] create | install | train ... | keep ... | delete" >&2; exit 2 ;;
esac
