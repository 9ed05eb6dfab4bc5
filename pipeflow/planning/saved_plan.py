"""What `plan.json` says."""

import dataclasses
from typing import Any

import torch

from .cautions import cautions
from .forecast import Forecast
from .plan import Plan

MADE_BY = "pipeflow.plan"
"""In plan.json and plan.png, so that no other file is written over."""


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; seconds, bytes, bits per second, images per second throughout.

    Returns:
        image, images, batch: (C, H, W), training images, images per step.
        device, memory_bytes, busy, link_bits_per_s, least_link_bits_per_s: as `Plan` describes them.
        at: flow steps before each border.
        parts: a `PartRow` each.
        ways: a `Forecast` each, with "fits": whether a device has the memory.
        best: for 1, 2, … devices, the ways with the best cut.
        phases: a `PhaseRow` each: seconds and images_per_s by who carries the phase out.
        placement: a `PlacedProcess` each, its parts as first and end; null without --hosts.
        cautions: sentences.
        made_by, format, torch, config, profile: where the figures come from.
    """

    def forecasts(ways: list[Forecast]) -> list[dict[str, Any]]:
        return [{**dataclasses.asdict(way), "fits": plan.fits(way)} for way in ways]

    return {
        "image": list(plan.image),
        "images": plan.images,
        "batch": plan.config.data.batch,
        "device": plan.device,
        "link_bits_per_s": plan.link.bits_per_s,
        "memory_bytes": plan.memory_bytes,
        "busy": plan.busy,
        "at": list(plan.at),
        "parts": [dataclasses.asdict(row) for row in plan.parts],
        "least_link_bits_per_s": plan.least_link,
        "ways": forecasts(plan.ways),
        "best": [forecasts(ways) for ways in plan.best],
        "phases": [dataclasses.asdict(row) for row in plan.phases],
        "placement": plan.placement
        and [one._asdict() | {"parts": [one.parts.start, one.parts.stop]} for one in plan.placement.processes],
        "cautions": cautions(plan),
        "made_by": MADE_BY,
        "format": 2,
        "torch": torch.__version__,
        "config": plan.config.as_dict(),
        "profile": plan.profile.as_dict(),
    }
