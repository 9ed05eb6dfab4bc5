"""What several tests need: processes, small runs, injected faults."""
