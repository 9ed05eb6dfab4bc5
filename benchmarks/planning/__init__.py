"""How near a plan comes to the run."""
