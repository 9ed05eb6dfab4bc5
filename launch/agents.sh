#!/usr/bin/env bash
# Training on this machine where a process that dies while training by parts comes back alone.
#
#     launch/agents.sh 3 --config configs/quickstart.yaml --run_dir runs/quickstart
#
# The first word is the number of processes; the rest goes to pipeflow.train. The same command goes on with a run that
# was interrupted. The two settings work under any launcher, on several hosts too. A process that dies is started again
# at most MAX_RESTARTS times (3 by default) by one that waits beside it; after that the run ends.
set -euo pipefail
processes=${1:?is missing: the number of processes comes first}
shift
exec torchrun --standalone --nproc_per_node="$processes" \
    -m pipeflow.train --resume auto --parallel.rejoin_s 300 --parallel.restarts "${MAX_RESTARTS:-3}" "$@"
