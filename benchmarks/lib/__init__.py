"""What several benchmarks share: results file, launcher, timing, workload, network namespaces."""
