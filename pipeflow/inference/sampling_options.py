"""What `python -m pipeflow.sample` is asked for, checked before anything is opened."""

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["grid", "each-part", "interpolate", "reconstruct"]
_DEFAULTS = {"n": 64, "temperature": [0.7], "seed": 0}


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, a checkpoint, or an exported flow")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: RUN/samples/<kind>.png")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--interpolate", nargs="*", type=int, metavar="I J", help="from test image I to J, and so on")
    kinds.add_argument("--reconstruct", type=int, metavar="N", help="the first N test images above what comes back")
    kinds.add_argument("--each-part", action="store_true", help="what the flow draws if it stops at each border")
    parser.add_argument(
        "--images", "--n", dest="n", metavar="N", type=int, help="how many images to draw (default: 64)"
    )
    parser.add_argument("--temperature", nargs="+", type=float, metavar="T", help="one or more (default: 0.7)")
    parser.add_argument("--seed", type=int, help="of the draw (default: 0)")
    parser.add_argument("--root", metavar="DIR", help="where the files of the run's test images are")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


@dataclass(frozen=True)
class SamplingOptions:
    """What to draw, and where to.

    Attributes:
        run: a run directory, a checkpoint, or an exported flow.
        kind: "grid" (images that the flow draws), "each-part" (those of the flow that stops after each part),
            "interpolate" (between test images) or "reconstruct" (test images, there and back).
        out: the PNG file.
        n, temperatures, seed: of what is drawn.
        pairs: numbers of the test images to interpolate between, two by two; None for the first ones.
        count: how many test images to reconstruct.
        root: where the files of the test images are, if not where the run's settings say.
        device: auto, cpu or cuda.
    """

    run: Path
    kind: Kind
    out: Path
    n: int
    temperatures: list[float]
    seed: int
    pairs: list[int] | None
    count: int
    root: str | None
    device: str

    @property
    def exported(self) -> bool:
        """Whether the flow comes from a file that `export` wrote."""
        return self.run.suffix == ".safetensors"


def sampling_options(parsed: argparse.Namespace) -> SamplingOptions:
    """The parsed command line, completed.

    Raises:
        ValueError: options that do not go together, or a file that cannot be written.
    """
    kind: Kind = "grid"
    if parsed.each_part:
        kind = "each-part"
    elif parsed.interpolate is not None:
        kind = "interpolate"
    elif parsed.reconstruct is not None:
        kind = "reconstruct"
    draws, exported = kind in ("grid", "each-part"), parsed.run.suffix == ".safetensors"
    if kind != "grid" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--{kind} runs in one process; only what the whole flow draws is drawn in several.")
    if kind != "grid" and exported:
        raise ValueError(f"{parsed.run} has no parts and no data, so --{kind} needs the run's directory.")
    for name, value in _DEFAULTS.items():
        if getattr(parsed, name) is None:
            setattr(parsed, name, value)
        elif not draws:
            raise ValueError(f"--{name} says what to draw, but --{kind} draws nothing; leave it out.")
    if draws and parsed.root is not None:
        raise ValueError("--root says where test images are; only --interpolate and --reconstruct look at them.")
    for name in ("n", "reconstruct"):
        if (value := getattr(parsed, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    for value in parsed.temperature:
        if not 0 <= value < math.inf:
            raise ValueError(f"--temperature is {value:g}; it must be 0 or a positive number.")
    if kind == "each-part" and len(parsed.temperature) > 1:
        raise ValueError(f"--each-part takes one --temperature, not {len(parsed.temperature)}.")
    if len(parsed.interpolate or []) % 2:
        raise ValueError(f"--interpolate takes pairs of images, not {len(parsed.interpolate)} numbers.")
    return SamplingOptions(
        run=parsed.run,
        kind=kind,
        out=_checked_out(parsed.out, parsed.run, kind, exported),
        n=parsed.n,
        temperatures=parsed.temperature,
        seed=parsed.seed,
        pairs=parsed.interpolate or None,
        count=parsed.reconstruct or 0,
        root=parsed.root,
        device=parsed.device,
    )


def _checked_out(out: Path | None, run: Path, kind: Kind, exported: bool) -> Path:
    if out is None:
        if exported or (run / "manifest.json").exists():
            raise ValueError(f"{run} is no run directory; say where the picture goes with --out FILE.png.")
        out = run / "samples" / f"{kind}.png"
    if out.suffix != ".png":
        raise ValueError(f"--out {out} must end in .png.")
    if out.exists():
        raise ValueError(f"{out} is there already, and is not written over; give another name with --out.")
    return out
