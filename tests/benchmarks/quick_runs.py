"""Runs a benchmark in its quick form, as users do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib.torchrun import ROOT, environment

RESULTS = ROOT / "benchmarks" / "results"


def run(*command: str) -> str:
    """Runs Python in the repository root; returns what it printed."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def quick(module: str, directory: Path, *words: str) -> dict[str, Any]:
    """What a quick run wrote; it leaves benchmarks/results/ alone, and nothing else beside its files."""
    file = directory / f"{module.rpartition('.')[2]}.json"
    kept = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    run("-m", f"benchmarks.{module}", "--quick", "--json", file, *words)
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == kept
    assert {path.name for path in directory.iterdir()} <= {file.name, file.with_suffix(".png").name}
    assert str(directory) not in file.read_text(), "no paths of this machine"
    found: dict[str, Any] = json.loads(file.read_text())
    assert {"date", "command", "hardware", "versions", "config"} <= found.keys()
    assert found["command"].startswith(f"python -m benchmarks.{module} --quick")
    return found
