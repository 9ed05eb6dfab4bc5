"""`python benchmarks/comm_volume.py`, a path that users were promised: runs `benchmarks.speed.comm_volume`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository root instead of this directory
    from benchmarks.speed.comm_volume import main

    main()
