"""A run small enough for a test, on the real digits."""

from pathlib import Path
from typing import Any

from pipeflow.config import Config, PhaseConfig, Resume
from pipeflow.data import DataConfig
from pipeflow.distributed import open_world
from pipeflow.model import CutConfig, GlowConfig, JetConfig, TarFlowConfig
from pipeflow.training import fit

FLOWS: dict[str, dict[str, Any]] = {  # six flow steps each
    "glow": {"glow": GlowConfig(levels=2, steps=3, hidden=8, top_prior="learned")},
    "jet": {"flow": "jet", "jet": JetConfig(couplings=6, depth=1, width=8, heads=2, patch=2)},
    "tarflow": {"flow": "tarflow", "tarflow": TarFlowConfig(blocks=6, depth=1, width=8, heads=2, patch=4)},
}
LABELS = DataConfig(batch=12, init_batch=32, labels=True, label_dropout=0.3)
FLOWS |= {f"{flow} with labels": {**FLOWS[flow], "data": LABELS} for flow in ("jet", "tarflow")}


def small_config(run: Path, phases: list[PhaseConfig], batch: int = 12, **others: Any) -> Config:
    """2 levels × 3 steps × 8 in 3 parts, learned priors, so that every kind of parameter takes part."""
    return Config(
        **{
            "run_dir": str(run),
            "device": "cpu",
            **FLOWS["glow"],
            "data": DataConfig(batch=batch, init_batch=32),
            "cut": CutConfig("explicit", 3, [1, 4], provisional_prior="learned"),
            "phases": phases,
            "eval_every": 1e9,
            **others,
        }
    )


def fit_in(init_method: str, config: Config, resume: Resume = None) -> dict[str, Any]:
    """`fit` in the processes that `in_processes` started, or in this one if they meet nowhere; it ends with them."""
    world = open_world(config.parallel, config.cut.parts, config.device, init_method)
    result = fit(config, world, resume)
    world.close()
    return result


def fit_each(init_method: str, configs: list[Config], resume: Resume = None) -> None:
    """`fit_in` for several runs, one after another."""
    fit_each_from(init_method, [(config, resume) for config in configs])


def fit_each_from(init_method: str, runs: list[tuple[Config, Resume]]) -> None:
    """`fit_in` for several runs, one after another, each from what it resumes."""
    for number, (config, resume) in enumerate(runs):
        fit_in(f"{init_method}-{number}" if init_method else "", config, resume)
