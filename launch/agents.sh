#!/usr/bin/env bash
# Training on this machine with an agent a process: a process that dies while training by parts comes back alone.
#
#     launch/agents.sh 3 --config configs/quickstart.yaml --run_dir runs/quickstart
#
# The first word is the number of processes; the rest goes to pipeflow.train. The same command goes on with a run that
# was interrupted. torchrun's elastic agent ends all of its workers when one dies, so each process gets an agent of its
# own; they meet at MASTER_PORT (29500 by default), and the store there is the first agent's, which outlives its worker.
# A process that dies is started again at most MAX_RESTARTS times (3 by default); an agent that gives up ends the
# others. Each process sees one GPU.
set -euo pipefail
processes=${1:?is missing: the number of processes comes first}
shift
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((rank = 0; rank < processes; rank++)); do
    CUDA_VISIBLE_DEVICES=$rank torchrun --rdzv-backend=static --nnodes="$processes" --node-rank="$rank" \
        --nproc-per-node=1 --master-addr=127.0.0.1 --master-port="${MASTER_PORT:-29500}" \
        --max-restarts="${MAX_RESTARTS:-3}" -m pipeflow.train --resume auto --parallel.rejoin_s 300 "$@" &
done
for ((rank = 0; rank < processes; rank++)); do
    wait -n
done
