"""One optimizer step of the same Glow in pipeflow and in other libraries, compared with its matrix products alone.

    pip install -e '.[peers]'                     (the script names those that are missing, and leaves them out)
    python -m benchmarks.step.peers [--levels 3 --steps 4 --hidden 512 --batch 16 --threads 2] [--device cpu|cuda]
                                    [--quick]                                              (4 minutes)

A step is: log-likelihood of a batch, backward, Adam. pipeflow's is that of a stage at work (`Stage.tick`, with its
norm of the gradient and its checks for values that are not finite). All take their steps in turns, round after round,
so that whatever else the machine does meets all alike. Each library is timed in several variants (peer_glows.py), of
which the fastest counts; each must have a finite likelihood, a gradient in every parameter that is not frozen, and a
loss that falls.

The floor: the matrix products of all convolutions, forward, backward to the weights and backward to the inputs, at the
rate at which this machine does just these products, measured in the same rounds.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib.results import about, axes, keep, make_parser, table
from benchmarks.lib.timing import now
from benchmarks.lib.workload import Repeated, Workload, count_parameters
from benchmarks.step.matrix_products import matrix_products, operations, products_time
from benchmarks.step.peer_glows import DIFFERENT, peers
from pipeflow.distributed import keep_memory
from pipeflow.flow import Packet
from pipeflow.stream import Discard

BITS = math.log(2) * 3 * 32 * 32  # nats per bit/dim
WARM_UP = 2  # rounds that are not counted
VARIANTS: dict[str, dict[str, Any]] = {
    "channels first": {},
    "channels last": {"layout": "channels_last"},
    "channels last, compiled steps": {"layout": "channels_last", "compile": "steps"},
}


@dataclass
class Candidate:
    """A library's flow in one variant, and what was measured of it.

    Attributes:
        library, variant: names.
        step: one optimizer step; returns bits/dim before it.
        parameters: how many numbers it learns.
        seconds, bits: of every step.
    """

    library: str
    variant: str
    step: Callable[[], float]
    parameters: int
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return median(self.seconds[WARM_UP:])


def main() -> None:
    parser = make_parser(__doc__)
    for name, default in (("levels", 3), ("steps", 4), ("hidden", 512), ("batch", 16), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.quick:
        args.levels, args.steps, args.hidden, args.batch, args.threads, args.rounds = 2, 2, 16, 8, 1, 2
    torch.set_num_threads(args.threads)
    keep_memory()
    device = torch.device(args.device)
    sizes = {name: getattr(args, name) for name in ("levels", "steps", "hidden", "batch", "device")}
    workload = Workload(**sizes, size=32, lr=1e-4, split_prior="standard")
    x = torch.rand(args.batch, *workload.pixels.shape, generator=torch.Generator().manual_seed(0)).to(device) - 0.5
    variants = list(VARIANTS)[: 2 if args.quick else None]  # compiling takes longer than a quick run should
    candidates = [in_pipeflow(replace(workload, **VARIANTS[variant]), variant, x) for variant in variants]
    for library, builds in peers(workload).items():
        try:
            importlib.import_module(library)
        except ImportError as error:
            print(f"{library} is left out: it does not import ({error})")
            continue
        candidates += [in_library(library, variant, build(), x, workload.lr) for variant, build in builds.items()]
        variant, build = list(builds.items())[-1]
        if not args.quick:
            try:
                candidates.append(in_library(library, f"{variant}, compiled", torch.compile(build()), x, workload.lr))
            except (RuntimeError, TypeError) as error:
                print(f"{library} does not compile: {str(error).strip().splitlines()[0]}")
    products = matrix_products(workload)
    floors: list[float] = []
    for number in range(args.rounds + WARM_UP):
        for candidate in candidates:
            start = now(device)
            candidate.bits.append(candidate.step())
            candidate.seconds.append(now(device) - start)
        floors.append(products_time(products, device))
        print(f"\rround {number + 1} of {args.rounds + WARM_UP}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report(workload, candidates, median(floors[WARM_UP:]), operations(products), args)


def in_pipeflow(workload: Workload, variant: str, x: Tensor) -> Candidate:
    """The flow as one stage, with the same images at every step."""
    flow = workload.build()[1]
    stage = workload.stage(flow)
    stage.connect(Repeated(Packet(x, x.new_full((len(x),), -8 * BITS))), Discard())
    return checked(Candidate("pipeflow", variant, lambda: stage.tick().bits_per_dim, count_parameters(flow)), flow)


def in_library(library: str, variant: str, flow: nn.Module, x: Tensor, lr: float) -> Candidate:
    """A flow with the plainest training loop."""
    flow.to(x.device)
    images = x.contiguous(memory_format=torch.channels_last) if "last" in variant else x
    with torch.no_grad():
        flow(images)  # ActNorm's start
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], lr)

    def step() -> float:
        optimizer.zero_grad()
        loss = 8 - flow(images).mean() / BITS
        loss.backward()
        optimizer.step()
        return loss.item()

    return checked(Candidate(library, variant, step, count_parameters(flow)), flow)


def checked(candidate: Candidate, flow: nn.Module) -> Candidate:
    """The candidate, if two steps of it are finite, leave a gradient in every parameter, and lower the loss."""
    bits = [candidate.step() for _ in range(3)]
    name = f"{candidate.library} ({candidate.variant})"
    if not all(map(math.isfinite, bits)) or not bits[-1] < bits[0]:
        raise SystemExit(f"{name} does not learn: its bits/dim are {bits}.")
    without = [key for key, p in flow.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    if without:
        raise SystemExit(f"{name} has no gradient in {', '.join(without)}.")
    return candidate


def report(workload: Workload, candidates: list[Candidate], floor: float, flop: float, args: Any) -> None:
    """Prints, draws and keeps what was measured."""
    fastest: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: -candidate.median_s):
        fastest[candidate.library] = candidate
    pipeflow_s = fastest["pipeflow"].median_s

    def speed(seconds: float, spread: str | None) -> list[str | None]:
        numbers = [f"{args.batch / seconds:.1f}", f"{seconds / floor:.2f}", f"{seconds / pipeflow_s:.2f}"]
        return [f"{1e3 * seconds:.0f}", spread, *numbers]

    rows, kept = [], []
    for candidate in candidates:
        name = candidate.library + "*" * (candidate is fastest[candidate.library])
        counted = candidate.seconds[WARM_UP:]
        spread = f"{1e3 * min(counted):.0f}–{1e3 * max(counted):.0f}"
        learned = f"{candidate.bits[0]:.2f} → {candidate.bits[-1]:.2f}"
        rows.append([name, candidate.variant, candidate.parameters, *speed(candidate.median_s, spread), learned])
        measured = {"seconds": counted, "bits": candidate.bits, "median_s": candidate.median_s}
        names = ("library", "variant", "parameters")
        kept.append({key: getattr(candidate, key) for key in names} | measured)
    rows.append(["floor", "matrix products", None, *speed(floor, None), None])
    shape = f"{workload}, {args.threads} threads, {args.device}"
    heads = ["library (* its fastest)", "variant", "parameters", "ms/step", "least–most", "images/s"]
    print(f"{shape}: median of {args.rounds} steps")
    print(table([*heads, "× floor", "× pipeflow", "bits/dim"], rows))
    print(f"floor: {flop / 1e9:.1f} GFLOP at {flop / floor / 1e9:.0f} GFLOP/s")
    timed = sorted(fastest.keys() - {"pipeflow"})
    for library in timed:
        print(f"{library} {version(library)}: {DIFFERENT[library]}")
    figure, axis = axes(figsize=(7, 3))
    axis.barh(list(fastest), [1e3 * candidate.median_s for candidate in fastest.values()])
    axis.axvline(1e3 * floor, color="black", linestyle="--", label="floor: matrix products alone")
    axis.invert_yaxis()
    axis.set(xlabel="ms per optimizer step", title=shape)
    axis.legend()
    settings = {"workload": asdict(workload), "threads": args.threads, "rounds": args.rounds}
    described = about({**settings, "different": {library: DIFFERENT[library] for library in timed}})
    described["versions"] |= {library: version(library) for library in timed}
    result = {**described, "floor_s": floor, "floor_flop": flop, "candidates": kept}
    keep("peers", result, args, figure)


if __name__ == "__main__":
    main()
