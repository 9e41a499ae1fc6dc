#!/usr/bin/env bash
# Slurm, one process for each GPU, as JAX joins them; a job that is preempted or out of time goes back into the queue and goes on.
#
#   export NODES=4 GPUS=8 HOURS=24 NAME=dit
#   launch/slurm.sh --config configs/imagenet256_dit_xl2.py --workdir /shared/runs/dit
#
# --dry-run before the first word prints the command. PARTITION and ACCOUNT are handed on where they are set.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
NODES=${NODES:-1}
GPUS=${GPUS:-1}
HOURS=${HOURS:-24}
NAME=${NAME:-diffusion_jax}
if [ "$#" -eq 0 ]; then
    echo "usage: launch/slurm.sh [--dry-run] --config ... --workdir ..." >&2
    exit 2
fi
# SIGTERM five minutes before the end, handed on to the step (srun itself would kill it): the run saves, exits with code 0, and
# requeue starts the same command again.
job="srun $(line python3 -m diffusion_jax.main --distributed "$@") & pid=\$!
trap 'scancel --signal=TERM \$SLURM_JOB_ID.0; wait \$pid; scontrol requeue \$SLURM_JOB_ID' TERM
wait \$pid"
run sbatch "--job-name=$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS" "--time=$HOURS:00:00" --requeue \
    --signal=B:TERM@300 ${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"} "--wrap=$job"
