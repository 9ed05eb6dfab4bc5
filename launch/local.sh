#!/usr/bin/env bash
# One host, a process a GPU. Without GPUs, or for another number of processes, set PROCESSES.
#
#   launch/local.sh --config configs/cifar10_balanced3.yaml --run_dir runs/mine
#   PROCESSES=3 launch/local.sh --run_dir runs/mine
#
# Every word goes to pipeflow.train. The same command goes on with a run that was interrupted; a process that dies is
# restarted with the others, up to three times, from the newest checkpoint.
set -euo pipefail
exec torchrun --standalone --nproc_per_node="${PROCESSES:-gpu}" --max-restarts=3 \
    -m pipeflow.train --resume auto "$@"
