"""`plan.json` in a run's directory: what `python -m pipeflow.plan` measured, read again when the run is under way.

A prediction that is made by the run itself would cost it time, or be made of what has been achieved already. So `train`
measures nothing: where a plan for the same flow on the same kind of device lies in the run directory, what it measured
is turned into what these processes should do, and stands beside what they did.
"""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Config, PhaseConfig, phase_steps, turns
from ..distributed import World, owners
from ..model import scheme_cut
from .forecast import Link
from .phase_forecast import Crew, phase_seconds
from .profile import Profile

FILE = "plan.json"
FORMAT = 1


def device_name(device: torch.device) -> str:
    """What the figures of a plan belong to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU with {os.cpu_count()} cores"


def subject(config: Config, image: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """All that the measured costs depend on, by the names of the settings."""
    values = config.as_dict()
    return {
        **{name: values[name] for name in ("glow", "precision", "layout", "compile", "activations", "ema")},
        "data.batch": config.data.batch,
        "data.flip": config.data.flip,
        "cut.provisional_prior": config.cut.provisional_prior,
        "parallel.threads": config.parallel.threads,
        "optimizer": config.phases[0].optimizer,
        "image": list(image),
        "device": device_name(device),
    }


def at_once(world: World) -> float:
    """How many of a world's processes can compute at the same time: a device or so many cores each, on every host."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))
    return world.size * min(1.0, capacity(world.device, world.config.threads) / local)


def capacity(device: torch.device, threads: int) -> float:
    """How many processes this host has devices, or cores, for."""
    if device.type == "cuda":
        return torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1.0, cores / threads)


@dataclass(frozen=True)
class Planned:
    """The plan of a run, if there is one that fits.

    Attributes:
        profile: what was measured; None without a plan.
        link: that the plan was made for.
        said: what is to be said about a plan that is not used.
    """

    profile: Profile | None
    link: Link
    said: str = ""

    def images_per_s(self, config: Config, settings: PhaseConfig, images: int, world: World) -> float | None:
        """What a phase should reach in these processes; None without a plan.

        Args:
            config: with an explicit cut.
            settings: of the phase.
            images: size of the training set.
            world: the processes.
        """
        if self.profile is None:
            return None
        batch, parts = config.data.batch, config.cut.parts
        crew = Crew(owners(parts, world.grid.stages), world.grid.replicas, at_once(world))
        at = scheme_cut(config.cut, config.glow.levels, config.glow.steps)
        plan = turns(settings, parts, images, batch)
        joined = config.end_to_end if settings.schedule == "end_to_end" else None
        return (
            phase_steps(settings, images, batch)
            * batch
            / phase_seconds(self.profile, at, plan, joined, batch, self.link, crew)
        )


def read_plan(directory: Path, config: Config, image: tuple[int, ...], device: torch.device) -> Planned:
    """The plan in a run's directory, unless it is missing, damaged or of another flow, batch or device."""
    file = directory / FILE
    nothing = Planned(None, Link(float("inf")))
    if not file.is_file():
        return nothing
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise ValueError("another format")
        then, link = found["subject"], Link(float(found["link_bits_per_s"]))
        profile = Profile.from_dict(found["profile"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Planned(None, nothing.link, f"{file} is no plan that can be read, and nothing is predicted from it")
    now = subject(config, image, device)
    other = [name for name in now if now[name] != then.get(name)]
    if other:
        return Planned(
            None, nothing.link, f"{file} was made for another {', '.join(other)}, and nothing is predicted from it"
        )
    return Planned(profile, link)
