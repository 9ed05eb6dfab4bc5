"""python -m pipeflow.plan: before a GPU hour is spent: what the parts cost, what to expect, and which cut is best.

It measures the steps of the flow on this device, for some seconds, and computes the rest. `plan.json` and `plan.png` go
into the run's directory, where `train` finds the plan and at its end says what was predicted beside what was achieved.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cli import Options
from .config import Config, parse_resume, turns
from .data import Pixels, check_enough, outline
from .distributed import choose_device, intra_op_threads, prepare_process
from .model import scheme_cut
from .planning import (
    FILE,
    FORMAT,
    Link,
    Outlook,
    Profile,
    Setting,
    as_json,
    balanced_cut,
    capacity,
    device_name,
    events_behind,
    look,
    place,
    subject,
    survey,
)
from .reporting import PLAN_MAKER, chart, tables
from .units import bits_per_second, bytes_of


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is made for, besides the run's settings.

    Attributes:
        link: speed between two devices, one way, in bits a second.
        memory: bytes of a device; None takes those of the device that is measured, or of this host.
        hosts, gpus_per_host: a grid of one process a GPU; None plans for a device a part.
        out: directory of plan.json and plan.png; None is the run's.
    """

    link: float = 1e10
    memory: float | None = None
    hosts: int | None = None
    gpus_per_host: int | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        if (self.hosts is None) != (self.gpus_per_host is None):
            raise ValueError("--hosts and --gpus-per-host belong together; give both, or none.")


def plan(config: Config, wanted: PlanConfig = PlanConfig()) -> Outlook:
    """Measures, computes, and writes plan.json and plan.png; a plan that is there is made anew.

    Args:
        config: the settings of the run.
        wanted: what to plan for.

    Returns:
        What the plan says; `tables.tables` makes words of it.

    Raises:
        ValueError: settings that `train` would refuse, or a place that cannot be written; nothing was written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("A plan is made by one process, also for many; start it without torchrun.")
    data, parts = config.data, config.cut.parts
    if config.flow != "glow" or data.name == "own":
        raise ValueError("A plan is made from settings alone; a flow or data of a script's own are not in them.")
    image, levels, images = outline(data.name, data.root, data.image_size, data.on_corrupt)
    check_enough(data, images)
    for phase in config.phases:
        turns(phase, parts, images, data.batch)
    placement = None
    if wanted.hosts is not None and wanted.gpus_per_host is not None:
        placement = place(parts, wanted.hosts, wanted.gpus_per_host)
    device = choose_device(config.device)
    directory = _directory(config, wanted)
    began, computed = time.perf_counter(), time.process_time()
    with intra_op_threads(config.parallel.threads):
        profile = survey(config, Pixels(image, levels, data.bits), device)
    computed, took = time.process_time() - computed, time.perf_counter() - began
    setting = Setting(
        config=config,
        image=image,
        images=images,
        events=events_behind(config, image),
        device=device_name(device),
        cuda=device.type == "cuda",
        here=capacity(device, config.parallel.threads),
        link=Link(wanted.link),
        memory_bytes=wanted.memory or _memory(device),
        busy=max(0.0, 1 - computed / took) if device.type == "cpu" else 0.0,
        placement=placement,
    )
    found = look(setting, profile, _cut(config, profile))
    _write(directory, as_json(found) | _origin(config, profile, image, device), chart(found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something is for the user to put right."""
    description = (
        "What a run will cost and do. Takes every setting as well; `python -m pipeflow.train --help` lists them."
    )
    parser = Options("pipeflow.plan", description)
    parser.add_argument("--link", metavar="SPEED", help="between two devices, one way; 10Gb/s if not given")
    parser.add_argument("--memory", metavar="AMOUNT", help="of a device, such as 80GB; that of this one if not given")
    parser.add_argument("--hosts", type=int, metavar="N", help="shows which process sits where, with --gpus-per-host")
    parser.add_argument("--gpus-per-host", type=int, metavar="N", help="one process each")
    parser.add_argument("--out", metavar="DIR", help="for plan.json and plan.png; the run directory if not given")
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--"]
    try:
        given, settings = parser.parse_known_args(words)
        wanted = PlanConfig(
            link=PlanConfig.link if given.link is None else _unit("--link", bits_per_second, given.link),
            memory=None if given.memory is None else _unit("--memory", bytes_of, given.memory),
            hosts=given.hosts,
            gpus_per_host=given.gpus_per_host,
            out=given.out,
        )
        config, resume = parse_resume(settings)
        if resume is not None:
            raise ValueError("--resume is an option of pipeflow.train; a plan needs the settings alone.")
        prepare_process(config.parallel.threads, choose_device(config.device))
        found = plan(config, wanted)
    except ValueError as error:
        print(f"pipeflow: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    print(tables(found))
    print(f"\n{_directory(config, wanted)}: plan.json and plan.png are there.")
    return 0


def _unit(option: str, read: Any, text: str) -> float:
    try:
        return float(read(text))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _cut(config: Config, profile: Profile) -> tuple[int, ...]:
    """The cut that the settings ask for; a balanced one as `train` measures it, without links and updates."""
    if config.cut.scheme != "balanced":
        return scheme_cut(config.cut, config.glow.levels, config.glow.steps)
    batch = config.data.batch
    return balanced_cut([cost.forward(batch) + cost.backward(batch) for cost in profile.steps], config.cut.parts)


def _memory(device: torch.device) -> float:
    """Bytes of the device; on the CPU of the host, which its processes share."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _origin(config: Config, profile: Profile, image: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """Where the figures come from, and what `train` needs to predict from them."""
    return {
        "made_by": PLAN_MAKER,
        "format": FORMAT,
        "torch": torch.__version__,
        "subject": subject(config, image, device),
        "config": config.as_dict(),
        "profile": profile.as_dict(),
    }


def _directory(config: Config, wanted: PlanConfig) -> Path:
    """Where the plan goes; a ValueError where something else is."""
    directory = Path(config.run_dir if wanted.out is None else wanted.out)
    option = "--run_dir" if wanted.out is None else "--out"
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{option} {directory} is a file; it must be a directory, or not exist yet.")
    for file in (directory / FILE, directory / "plan.png"):
        if file.exists() and PLAN_MAKER.encode() not in file.read_bytes():
            raise ValueError(f"{file} is no plan, and is not written over; give another --out.")
    return directory


def _write(directory: Path, said: dict[str, Any], picture: bytes) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "plan.png").write_bytes(picture)
        partial = directory / (FILE + ".partial")
        partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        partial.replace(directory / FILE)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written ({error.strerror}); give another --out.") from error


if __name__ == "__main__":
    sys.exit(main())
