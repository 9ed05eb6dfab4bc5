"""What checkpoints and faults cost."""
