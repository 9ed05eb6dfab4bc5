"""One optimizer step of the same Glow in pipeflow and in other libraries, against what matrix products alone take.

    pip install -e '.[peers]'                                 (those that are not there are left out, and said)
    python benchmarks/peers.py [--levels 3 --steps 4 --hidden 512 --batch 16 --threads 2] [--device cpu|cuda] [--quick]

A step is: log-likelihood of a batch, backward, Adam. pipeflow's is that of a stage at work (`Stage.tick`, with its
norm of the gradient and its checks for values that are not finite). All contenders take their steps in turns, round
after round, so that whatever else the machine does, it does to all of them. Each library is timed in several variants
(peer_glows.py) and stands for its fastest; each must have a finite likelihood, a gradient in every parameter that is
not frozen, and a loss that falls.

The floor: the matrix products of all convolutions, forward, backward to the weights and backward to the inputs, at the
rate at which this machine does just these products, measured in the same rounds.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from matrix_products import matrix_products, now, operations, product_time
from peer_glows import DIFFERENT, Size, peers
from results_file import about, axes, keep, make_parser, table
from torch import Tensor, nn

from pipeflow.distributed import keep_memory
from pipeflow.flow import Packet
from pipeflow.model import Compile, GlowConfig, Layout, glow_steps, make_passage, set_precision
from pipeflow.model.truncated import truncate
from pipeflow.stage import Stage, Update, make_optimizer
from pipeflow.stream import Discard

LR = 1e-4
IMAGE = (3, 32, 32)
BITS = math.log(2) * math.prod(IMAGE)
VARIANTS: dict[str, tuple[Layout, Compile]] = {
    "channels first": ("contiguous", "none"),
    "channels last": ("channels_last", "none"),
    "channels last, compiled steps": ("channels_last", "steps"),
}


@dataclass
class Contender:
    """What is timed.

    Attributes:
        library, variant: names.
        step: one optimizer step; returns bits/dim before it.
        parameters: how many numbers learn.
        seconds, bits: of every step.
    """

    library: str
    variant: str
    step: Callable[[], float]
    parameters: int
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)


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
    size = Size(args.levels, args.steps, args.hidden, IMAGE)
    x = torch.rand(args.batch, *IMAGE, generator=torch.Generator().manual_seed(0)).to(device) - 0.5
    own = dict(list(VARIANTS.items())[: 2 if args.quick else None])  # compiling takes longer than a quick look
    contenders = [in_pipeflow(size, x, variant, *how) for variant, how in own.items()]
    for library, variants in peers(size).items():
        try:
            importlib.import_module(library)
        except ImportError as error:
            print(f"{library} is left out: it does not import ({error})")
            continue
        contenders += [in_library(library, variant, build(), x) for variant, build in variants.items()]
        variant, build = list(variants.items())[-1]
        if not args.quick:
            try:
                contenders.append(in_library(library, f"{variant}, compiled", torch.compile(build()), x))
            except (RuntimeError, TypeError) as error:
                print(f"{library} does not compile: {str(error).strip().splitlines()[0]}")
    products = list(matrix_products(size, args.batch).items())
    floors: list[float] = []
    for number in range(args.rounds + 2):
        for contender in contenders:
            began = now(device)
            contender.bits.append(contender.step())
            contender.seconds.append(now(device) - began)
        floors.append(sum(count * product_time(shape, device) for shape, count in products))
        print(f"\rround {number + 1} of {args.rounds + 2}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report(contenders, median(floors[2:]), operations(products), args)


def in_pipeflow(size: Size, x: Tensor, variant: str, layout: Layout, compile: Compile) -> Contender:
    """The whole flow as one stage, priors standard normal as everywhere here."""
    config = GlowConfig(size.levels, size.steps, size.hidden, split_prior="standard")
    _, whole = truncate(glow_steps(config, IMAGE), (), IMAGE, "standard", "standard")
    packet = Packet(x, x.new_full((len(x),), -8 * BITS))
    set_precision(whole, "fp32", layout)
    whole.to(x.device).part.initialise(packet)
    whole.part.passage = make_passage(compile=compile)
    named = whole.named_global_parameters()
    stage = Stage(whole, Update(named, make_optimizer("adam", named, LR), LR), math.prod(IMAGE))

    class Same:
        """The same packet again and again."""

        def recv(self) -> Packet:
            return packet

        def close(self, early: bool = False) -> None:
            """Nothing is on its way."""

    stage.connect(Same(), Discard())
    return checked(Contender("pipeflow", variant, lambda: stage.tick().bits_per_dim, _count(whole)), whole)


def in_library(library: str, variant: str, flow: nn.Module, x: Tensor) -> Contender:
    """A flow with the plainest of training loops."""
    flow.to(x.device)
    given = x.contiguous(memory_format=torch.channels_last) if "last" in variant else x
    with torch.no_grad():
        flow(given)  # ActNorm's start
    optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], LR)

    def step() -> float:
        optimizer.zero_grad()
        loss = 8 - flow(given).mean() / BITS
        loss.backward()
        optimizer.step()
        return loss.item()

    return checked(Contender(library, variant, step, _count(flow)), flow)


def checked(contender: Contender, flow: nn.Module) -> Contender:
    """The contender, if two steps of it are finite, leave a gradient in every parameter, and lower the loss."""
    bits = [contender.step() for _ in range(3)]
    name = f"{contender.library} ({contender.variant})"
    if not all(map(math.isfinite, bits)) or not bits[-1] < bits[0]:
        raise SystemExit(f"{name} does not learn: its bits/dim are {bits}.")
    without = [key for key, p in flow.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    if without:
        raise SystemExit(f"{name} has no gradient in {', '.join(without)}.")
    return contender


def report(contenders: list[Contender], floor: float, flop: float, args: Any) -> None:
    """Prints, draws and keeps what was timed."""
    for contender in contenders:
        del contender.seconds[:2]
    own = min(median(contender.seconds) for contender in contenders if contender.library == "pipeflow")
    rows, kept = [], []
    for contender in contenders:
        took = median(contender.seconds)
        others = [median(other.seconds) for other in contenders if other.library == contender.library]
        mark = "*" if took == min(others) else ""
        spread = f"{1e3 * min(contender.seconds):.0f}–{1e3 * max(contender.seconds):.0f}"
        ratios = [f"{took / floor:.2f}", f"{took / own:.2f}"]
        learned = f"{contender.bits[0]:.2f} → {contender.bits[-1]:.2f}"
        rows.append(
            [f"{contender.library}{mark}", contender.variant, contender.parameters, f"{1e3 * took:.0f}", spread]
        )
        rows[-1] += [f"{args.batch / took:.1f}", *ratios, learned]
        kept.append({key: value for key, value in vars(contender).items() if key != "step"} | {"median_s": took})
    rows.append(["floor", "matrix products", None, f"{1e3 * floor:.0f}", None, f"{args.batch / floor:.1f}", "1.00"])
    rows[-1] += [f"{floor / own:.2f}", None]
    shape = (
        f"Glow {args.levels} × {args.steps} × {args.hidden}, batch {args.batch}, {args.threads} threads, {args.device}"
    )
    heads = ["library (* its fastest)", "variant", "parameters", "ms/step", "least–most", "images/s"]
    print(f"{shape}: median of {args.rounds} steps")
    print(table([*heads, "× floor", "× pipeflow", "bits/dim"], rows))
    print(f"floor: {flop / 1e9:.1f} GFLOP at {flop / floor / 1e9:.0f} GFLOP/s")
    timed = sorted({contender.library for contender in contenders} - {"pipeflow"})
    for library in timed:
        print(f"{library} {version(library)}: {DIFFERENT[library]}")
    fastest = {row[0].rstrip("*"): contender for row, contender in zip(rows, contenders, strict=False) if "*" in row[0]}
    figure, axis = axes(figsize=(7, 3))
    axis.barh(list(fastest), [1e3 * median(contender.seconds) for contender in fastest.values()])
    axis.axvline(1e3 * floor, color="black", linestyle="--", label="floor: matrix products alone")
    axis.invert_yaxis()
    axis.set(xlabel="ms an optimizer step", title=shape)
    axis.legend()
    settings = {
        key: getattr(args, key) for key in ("levels", "steps", "hidden", "batch", "threads", "rounds", "device")
    }
    told = about(
        {**settings, "image": IMAGE, "lr": LR, "different": {library: DIFFERENT[library] for library in timed}}
    )
    told["versions"] |= {library: version(library) for library in timed}
    result = {**told, "floor_s": floor, "floor_flop": flop, "contenders": kept}
    keep("peers", result, args, figure)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


if __name__ == "__main__":
    main()
