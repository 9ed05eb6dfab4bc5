"""What is missing where parts learn behind heads: is it in what a part has learned, or in that its input moves?

    python -m benchmarks.learning.what_is_left --out FILE [--parts 2 4] [--seeds 3] [--jobs 2] [--minutes M]
    python -m benchmarks.learning.what_is_left --table FILE

Digits, Glow 2 × 4 × 32, 600 steps. A whole flow is trained: end to end, by parts with standard normals, by parts with
heads. Then its first parts are frozen as they ended, and the rest of the flow learns from scratch, end to end, from
what they make of the same images, in as many steps. Four figures on held-out training images tell the causes apart:

* the flow itself;
* the rest after frozen parts that were trained end to end: what a rest from scratch can reach at all;
* the rest after frozen parts that were trained by parts: what is missing to the line before is what these parts
  have not learned for the others;
* the same of the flow itself: what later parts lose besides, by an input that moves and by their own objective.

A rest from scratch learns after parts that are done, so it ends lower than a flow that learns all at once; only
differences between columns say something.
"""

import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from benchmarks.learning.comparison import Line, about_runs, by_seed, grouped, mean_error, read_files
from benchmarks.lib.results import hardware, keep, make_parser, table
from pipeflow.config import Config, PhaseConfig
from pipeflow.data import Batches, DataConfig
from pipeflow.distributed import World, prepare_process
from pipeflow.flow import Packet
from pipeflow.model import CutConfig, GlowConfig, HeadConfig, Truncated
from pipeflow.stage import Stage, Update, make_optimizer
from pipeflow.storage.checkpoint import load
from pipeflow.stream import Discard
from pipeflow.training import fit
from pipeflow.training.evaluation import evaluate
from pipeflow.training.prepare import prepare

STEPS, WARM_UP, COOL, VALIDATION = 600, 50, 0.1, 200
BORDERS = {2: [4], 3: [3, 5], 4: [2, 4, 6]}
SOURCES = {"end to end": 1.6e-2, "by parts": 3.2e-2, "by parts with heads": 3.2e-2}


def settings(run: Path, source: str, at: list[int], seed: int, steps: int) -> Config:
    """A run of 600 steps, the last third at a tenth of the rate."""
    prior = "flow" if source.endswith("heads") else "standard"
    schedule = "end_to_end" if source == "end to end" else "simultaneous"
    warm = round(steps * 2 / 3)
    phases = [
        PhaseConfig(schedule, steps=warm, lr=SOURCES[source], warmup_steps=WARM_UP),
        PhaseConfig(schedule, steps=steps - warm, lr=COOL * SOURCES[source]),
    ]
    return Config(
        run_dir=str(run),
        seed=seed,
        device="cpu",
        glow=GlowConfig(levels=2, steps=4, hidden=32),
        data=DataConfig(batch=48, validation=VALIDATION),
        cut=CutConfig("explicit", len(at) + 1, at, prior, HeadConfig(1, 16, "random")),
        phases=phases,
        eval_every=1e9,
    )


class Frozen:
    """What parts that do not learn any more make of the training images."""

    def __init__(self, batches: Batches, before: Truncated) -> None:
        self._batches, self._before = batches, before

    def recv(self) -> Packet:
        with torch.no_grad():
            return self._before.part(self._batches.recv()).sealed()

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""


def rest_from_scratch(checkpoint: Path, border: int, seed: int, steps: int, lr: float) -> float:
    """Held-out bits/dim of frozen parts before a border and the rest of the flow, trained from scratch after them."""
    with tempfile.TemporaryDirectory() as parent:
        config = settings(Path(parent) / "run", "by parts", [border], seed + 1000, steps)
        world = World(config.parallel, 2, "cpu")
        state = prepare(world, config, None, None, None)
        run, slices = state.run, state.weights.slices
        weights, _ = load(checkpoint)
        slices[0].load_global_state(
            weights | {f"provisional.{border}.{k}": v for k, v in slices[0].prior.state_dict().items()}
        )
        images = run.images
        batches = Batches(images.train, run.space, seed, config.data.batch, False, world.device)
        first = Frozen(Batches(images.train, run.space, seed, config.data.init_batch, False, world.device), slices[0])
        with torch.no_grad():
            slices[1].initialise(first.recv())
        named = slices[1].named_global_parameters()
        stage = Stage(slices[1], Update(named, make_optimizer("adamw", named, lr), lr, WARM_UP), run.space.dims)
        stage.connect(Frozen(batches, slices[0]), Discard())
        for step in range(steps):
            if step == round(steps * 2 / 3):
                stage.update.lr = COOL * lr
            stage.tick()
        held_out = images.validation
        assert held_out is not None
        ledger = evaluate(run.chain, slices, held_out, run.space, seed, 50, 1)
        assert ledger.bits_per_dim is not None
        return ledger.bits_per_dim


def study(parts: int, source: str, seed: int, steps: int) -> list[Line]:
    """A flow, and the rest of it from scratch after each of its borders: a line per figure."""
    prepare_process(1, torch.device("cpu"))
    row: Line = {"parts": parts, "source": source, "seed": seed, "steps": steps}
    row |= {"hardware": hardware(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as parent:
        config = settings(Path(parent) / "run", source, BORDERS[parts], seed, steps)
        result = fit(config)
        found = [row | {"what": "itself", "validation": result["validation_bits_per_dim"]}]
        checkpoint = Path(parent) / "run" / "checkpoints" / f"step-{steps}"
        for border in BORDERS[parts]:
            bits = [rest_from_scratch(checkpoint, border, seed, steps, lr) for lr in (1.6e-2, 3.2e-2)]
            found.append(row | {"what": f"rest from scratch after {border}", "validation": min(bits), "by_lr": bits})
    return [line | {"key": f"{parts} {source} {seed} {steps} {line['what']}"} for line in found]


def show(lines: Sequence[Line]) -> str:
    rows = []
    for (parts, what), ours in sorted(grouped(lines, "parts", "what").items()):
        by_source = grouped(ours, "source")
        cells = []
        for source in SOURCES:
            runs = by_source.get((source,), [])
            found = mean_error(list(by_seed(runs, "validation").values()))
            cells.append(found and f"{found[0]:.3f} ± {found[1]:.3f} ({len(runs)})")
        rows.append([f"{parts} parts, {what}", *cells])
    return table(["held-out bits/dim (seeds)", *SOURCES], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="file of the lines, one per figure")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only make the table of such files")
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4], choices=list(BORDERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no flow is begun")
    args = parser.parse_args()
    if args.table:
        lines = read_files(args.table)
        print(show(lines))
        keep("what_is_left", {**about_runs(lines), "runs": lines}, args)
        return
    if not args.out:
        parser.error("--out or --table is needed.")
    until = time.monotonic() + 60 * args.minutes
    lines = []
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        wanted = [(parts, source, seed) for seed in range(args.seeds) for parts in args.parts for source in SOURCES]
        running = [pool.submit(study, *one, args.steps) for one in wanted]
        for future in as_completed(running):
            lines += future.result()
            args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
            if time.monotonic() > until:
                for other in running:
                    other.cancel()
                break
    print(show(lines))


if __name__ == "__main__":
    main()
