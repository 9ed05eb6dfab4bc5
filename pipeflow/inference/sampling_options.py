"""The options of `python -m pipeflow.sample`, checked before anything is opened."""

import argparse
import math
import os
from pathlib import Path
from typing import TypeVar

_DEFAULTS = {"n": 64, "temperature": [0.7], "seed": 0}


Parser = TypeVar("Parser", bound=argparse.ArgumentParser)


def add_sampling_options(parser: Parser) -> Parser:
    """Adds all options; returns the parser."""
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run directory, a checkpoint, or an exported flow")
    add("--out", type=Path, metavar="FILE.png", help="default: RUN/samples/<kind>.png")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--interpolate", nargs="*", type=int, metavar="I J", help="from test image I to J, and so on")
    kinds.add_argument("--reconstruct", type=int, metavar="N", help="the first N test images above what comes back")
    kinds.add_argument("--each-part", action="store_true", help="what the flow draws if it stops at each border")
    add("--images", "--n", dest="n", metavar="N", type=int, help="how many images to draw (default: 64)")
    add("--temperature", nargs="+", type=float, metavar="T", help="one or more (default: 0.7)")
    add("--seed", type=int, help="of the draw (default: 0)")
    add("--root", metavar="DIR", help="where the files of the run's test images are")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def complete_sampling_options(options: argparse.Namespace) -> argparse.Namespace:
    """Adds "kind" ("grid", "each-part", "interpolate" or "reconstruct"), and fills in what is left to the command.

    Raises:
        ValueError: options that do not go together, or a file that must not be written.
    """
    given = (options.each_part, options.interpolate is not None, options.reconstruct is not None)
    options.kind = dict(zip(given, ("each-part", "interpolate", "reconstruct"), strict=True)).get(True, "grid")
    draws, exported = options.kind in ("grid", "each-part"), options.run.suffix == ".safetensors"
    if options.kind != "grid" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--{options.kind} runs in one process; only what the whole flow draws is drawn in several.")
    if options.kind != "grid" and exported:
        raise ValueError(f"{options.run} has no parts and no data, so --{options.kind} needs the run's directory.")
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif not draws:
            raise ValueError(f"--{name} says what to draw, but --{options.kind} draws nothing; leave it out.")
    if draws and options.root is not None:
        raise ValueError("--root says where test images are; only --interpolate and --reconstruct look at them.")
    for name in ("n", "reconstruct"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")
    for value in options.temperature:
        if not 0 <= value < math.inf:
            raise ValueError(f"--temperature is {value:g}; it must be 0 or a positive number.")
    if options.kind == "each-part" and len(options.temperature) > 1:
        raise ValueError(f"--each-part takes one --temperature, not {len(options.temperature)}.")
    if len(options.interpolate or []) % 2:
        raise ValueError(f"--interpolate takes pairs of images, not {len(options.interpolate)} numbers.")
    if options.out is None:
        if exported or (options.run / "manifest.json").exists():
            raise ValueError(f"{options.run} is no run directory; say where the picture goes with --out FILE.png.")
        options.out = options.run / "samples" / f"{options.kind}.png"
    if options.out.suffix != ".png":
        raise ValueError(f"--out {options.out} must end in .png.")
    if options.out.exists():
        raise ValueError(f"{options.out} is there already, and is not written over; give another name with --out.")
    return options
