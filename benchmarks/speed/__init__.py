"""Images per second, bytes between processes and memory of the ways to train."""
