"""Benchmarks: named experiments that print a table and write a JSON file with hardware, date, versions and settings.

Each is a module, run from the repository root: `python -m benchmarks.speed.throughput`. `--help` says what it compares
and how long it takes; `--quick` runs it small, to see that it works. What is compared is measured side by side in one
run, never against an old number.

lib/         results file, torchrun, timing, the one builder of a model at work, network namespaces
speed/       images per second, bytes between processes and memory: by parts, pipelines, DDP, one process
learning/    test bits/dim: heads against end to end, schedules, learning rates
step/        one training step on a CPU: settings, other libraries, matrix products
robustness/  what checkpoints and faults cost
planning/    predicted against achieved speed
gpu/         one GPU: every setting, and the reference runs
loss_hash.py proof that a refactor keeps every bit
results/     what the experiments found
"""
