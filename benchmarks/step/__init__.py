"""One training step: its settings, other libraries, and its matrix products alone."""
