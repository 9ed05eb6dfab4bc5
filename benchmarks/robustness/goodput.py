"""How much of the training is kept where something dies again and again?

    python -m benchmarks.robustness.goodput --mtbf 60 --minutes 20 [--modes rejoin all torchrun] [--failures 100]
                                            [--every 50] [--seed 0] [--quick] [--json FILE]   (70 minutes)

Trains the quickstart's model by parts in 3 processes, first undisturbed, for about so many minutes; then once per mode,
while processes are killed at random (SIGKILL, exponential times between two, seeded, any rank), also while the run
recovers from the one before. All take the same number of steps. Modes: "rejoin": only the process that died starts
again (`parallel.rejoin_s`, `parallel.restarts`); "all": all start again from the last checkpoint (`parallel.restarts`);
"torchrun": the same by `torchrun --max-restarts`, which starts Python and imports PyTorch anew each time.

Goodput is the undisturbed run's duration over the disturbed one's, each from its first batch to its end. Where the time
goes is measured for failures that had the run to themselves: noticing (until a process says so), ending (until the
last new process is started), starting (Python), importing, meeting, loading (until it trains again) and recomputing
(until a batch is begun that was not begun before). The bits are those of the undisturbed run if the last checkpoint's
tensors and every loss on the way are equal. Needs /proc.
"""

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean, median
from subprocess import DEVNULL, PIPE
from typing import IO, Any

import numpy as np
import torch

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.torchrun import start, torchrun
from pipeflow.storage import checkpoint

MODES = ("rejoin", "all", "torchrun")
ITEMS = ("noticing", "ending", "starting", "importing", "meeting", "loading", "recomputing")
STAMPS = ("started", "began", "imported", "met", "stepping")
PROCESSES, TAIL = 3, 2


def command(mode: str, folder: Path, steps: int, every: int, restarts: int) -> list[str]:
    by_torchrun = restarts if mode == "torchrun" else 0
    parallel = ["--parallel.restarts", "0" if mode == "torchrun" else str(restarts)]
    parallel += ["--parallel.rejoin_s", "120"] if mode == "rejoin" else []
    return [
        *torchrun("--standalone", f"--nproc_per_node={PROCESSES}", f"--max-restarts={by_torchrun}"),
        *("-m", "benchmarks.robustness.stamped_train", str(folder), "--run_dir", str(folder / "run")),
        *("--phases", json.dumps([{"schedule": "simultaneous", "steps": steps}]), "--eval_every", "1e9"),
        *("--device", "cpu", "--checkpoint.every", str(every), "--parallel.heartbeat_s", "1", *parallel),
    ]


class Campaign:
    """One run, and what happens to it.

    Attributes:
        kills: when a process was killed, and its rank.
        said: when a process said what was wrong, and its line.
    """

    def __init__(self, mode: str, folder: Path, steps: int, every: int, restarts: int = 0) -> None:
        folder.mkdir()
        self.folder = folder
        for rank in range(PROCESSES):
            (folder / f"first-{rank}.f64").write_bytes(bytes(8 * (steps + 1)))
        self.first = np.memmap(folder / f"first-{TAIL}.f64", np.float64, "r")
        self.kills: list[tuple[float, int]] = []
        self.said: list[tuple[float, str]] = []
        words = command(mode, folder, steps, every, restarts)
        self.process = start(words, stdout=DEVNULL, stderr=PIPE, text=True)
        assert self.process.stderr
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.said.append((time.time(), line.rstrip()))

    def lives(self) -> list[dict[str, float]]:
        """Every process that there was: its rank, pid and stamps."""
        found: dict[tuple[int, float], dict[str, float]] = {}
        for rank in range(PROCESSES):
            file = self.folder / f"stamps-{rank}.jsonl"
            for line in file.read_text().splitlines() if file.exists() else []:
                stamp = json.loads(line)
                found.setdefault((rank, stamp["pid"]), {"rank": rank}).update(stamp)
        return list(found.values())

    def run(self, mtbf: float | None, failures: int, seed: int) -> float:
        """Waits for the end, and kills on the way; returns the seconds from the first batch to the end."""
        draw = random.Random(seed)
        while not self.first[1] and self.process.poll() is None:
            time.sleep(0.01)
        due = time.time() + draw.expovariate(1 / mtbf) if mtbf else float("inf")
        while self.process.poll() is None:
            time.sleep(0.01)
            if time.time() > due and len(self.kills) < failures and self._kill(draw):
                due += draw.expovariate(1 / mtbf) if mtbf else 0.0
        ended = time.time()
        self._reader.join()
        if self.process.returncode:
            sys.exit("\n".join(line for _, line in self.said[-40:]))
        return float(ended - self.first[1])

    def _kill(self, draw: random.Random) -> bool:
        """Kills a process of those that are there; False where there is none."""
        there = [life for life in self.lives() if Path(f"/proc/{life['pid']:.0f}").exists()]
        if not there:
            return False
        life = draw.choice(there)
        try:
            os.kill(int(life["pid"]), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.kills.append((time.time(), int(life["rank"])))
        return True

    def outages(self) -> list[dict[str, Any]]:
        """From each kill to the first batch that is new: how long, which kills are in it, and where the time went.

        The batches that were on their way when a process was killed do not count as new.
        """
        first, lives = np.array(self.first), self.lives()
        found: list[dict[str, Any]] = []
        for at, rank in self.kills:
            if found and at < found[-1]["until"]:
                found[-1]["ranks"].append(rank)
                continue
            back = [life["stepping"] for life in lives if life["rank"] == rank and life.get("stepping", 0) > at]
            if not back or not (later := first[first > min(back)]).size:  # killed after the last batch was begun
                continue
            until = float(later.min())
            found.append({"at": at, "until": until, "seconds": until - at, "ranks": [rank]})
        for outage in found:
            at, until = outage["at"], outage["until"]
            new = [life for life in lives if at < life.get("stepping", 0) <= until]
            if len(outage["ranks"]) == 1 and new:
                noticed = min((when for when, line in self.said if at < when and "pipeflow: " in line), default=at)
                marks = [at, noticed, *(max(life[stamp] for life in new) for stamp in STAMPS), until]
                marks = np.maximum.accumulate(np.minimum(marks, until)).tolist()
                outage |= dict(zip(ITEMS, np.diff(marks).tolist(), strict=True))
        return found


def same_bits(one: Path, other: Path, steps: int) -> bool:
    """Whether two runs of so many steps have ended with equal tensors, and had equal losses all the way."""
    tensors, others = (checkpoint.load(run / "checkpoints" / f"step-{steps}")[0] for run in (one, other))
    if tensors.keys() != others.keys() or not all(torch.equal(tensors[name], others[name]) for name in tensors):
        return False
    for part in range(1, PROCESSES + 1):
        texts = [(run / "metrics" / f"part-{part}.jsonl").read_text().splitlines() for run in (one, other)]
        losses = [[(line["step"], line["bits_per_dim"]) for line in map(json.loads, lines)] for lines in texts]
        if losses[0] != losses[1]:
            return False
    return True


def row(campaign: Campaign, seconds: float, undisturbed: float, mtbf: float, bits: bool) -> dict[str, Any]:
    outages = campaign.outages()
    alone = [outage for outage in outages if "noticing" in outage]
    lost = (seconds - undisturbed) / max(1, len(campaign.kills))
    return {
        "mtbf_s": mtbf,
        "failures": len(campaign.kills),
        "seconds": seconds,
        "goodput": undisturbed / seconds,
        "lost_s_per_failure": lost,
        "goodput_at_one_in_5_minutes": 1 - lost / 300,
        "during_recovery": len(campaign.kills) - len(outages),
        "same_bits": bits,
        "lost_s": {item: mean(outage[item] for outage in alone) for item in ITEMS} if alone else None,
        "outages": [{name: value for name, value in outage.items() if name != "until"} for outage in outages],
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--mtbf", type=float, default=60.0, help="seconds between two failures, on average")
    parser.add_argument("--minutes", type=float, default=20.0, help="that the undisturbed run takes, about")
    parser.add_argument("--failures", type=int, default=10**6, help="no more than so many per run")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:2])
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.mtbf, args.failures, args.every, args.seed = 5.0, 2, 20, 4
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        steps = 240 if args.quick else round(args.minutes * 60 / step_seconds(directory))
        first = Campaign("all", directory / "undisturbed", steps, args.every)
        undisturbed = first.run(None, 0, 0)
        print(f"{steps} steps undisturbed: {undisturbed:.1f} s", flush=True)
        rows = {}
        for mode in args.modes:
            campaign = Campaign(mode, directory / mode, steps, args.every, restarts=10_000)
            seconds = campaign.run(args.mtbf, args.failures, args.seed)
            bits = same_bits(first.folder / "run", campaign.folder / "run", steps)
            one = rows[mode] = row(campaign, seconds, undisturbed, args.mtbf, bits)
            print(
                f"{mode}: {one['failures']} failures, {seconds:.1f} s, goodput {one['goodput']:.3f}, "
                f"{one['lost_s_per_failure']:.1f} s lost per failure, {'equal' if bits else 'OTHER'} bits",
                flush=True,
            )
    print(
        table(
            ["seconds lost", *rows], [[item, *((r["lost_s"] or {}).get(item) for r in rows.values())] for item in ITEMS]
        )
    )
    config = {"steps": steps, "every": args.every, "processes": PROCESSES, "seed": args.seed}
    keep("goodput", {**about(config), "undisturbed_s": undisturbed, "modes": rows}, args, figure(rows))


def step_seconds(directory: Path) -> float:
    """Of an undisturbed run, on this machine now."""
    campaign = Campaign("all", directory / "trial", 200, 50)
    campaign.run(None, 0, 0)
    return median(np.diff(campaign.first[50:200]).tolist())


def figure(rows: dict[str, dict[str, Any]]) -> Any:
    """Where the time of a failure goes, a bar per mode."""
    drawn, axis = axes(figsize=(8, 1 + 0.6 * len(rows)))
    shown = {mode: found["lost_s"] for mode, found in rows.items() if found["lost_s"]}
    left = np.zeros(len(shown))
    for item in ITEMS:
        widths = np.array([lost[item] for lost in shown.values()])
        axis.barh([f"{mode}\ngoodput {rows[mode]['goodput']:.3f}" for mode in shown], widths, left=left, label=item)
        left = left + widths
    axis.set_xlabel("seconds that a failure costs, on average")
    axis.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    return drawn


if __name__ == "__main__":
    main()
