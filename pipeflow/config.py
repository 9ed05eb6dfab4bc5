"""The whole of a run's settings, put together from the dataclasses of their owners; YAML file and command line.

Each setting is documented and checked where it is used; here they only meet. What concerns two owners at once (one
learning rate a part, a whole batch a process) is checked here.
"""

import dataclasses
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from .checkpoint import CheckpointConfig
from .data import DataConfig
from .glow import GlowConfig
from .part import CutConfig, scheme_cut
from .passage import Activations, Compile, check_passage
from .plain import check_plain
from .precision import Layout, Precision
from .schedule import EndToEndConfig, PhaseConfig, micro_batches
from .sentence import sentence
from .world import ParallelConfig


def _quickstart_phases() -> list[PhaseConfig]:
    # 1,500 images are few: without weight decay the test bits/dim rise again after some 30 epochs.
    small_set: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 2.0}
    return [
        PhaseConfig("simultaneous", epochs=12.0, lr=2e-3, warmup_steps=50, **small_set),
        PhaseConfig("end_to_end", epochs=15.0, lr=1e-3, **small_set),
        PhaseConfig("end_to_end", epochs=6.0, lr=2e-4, **small_set),
    ]


@dataclass(frozen=True)
class Config:
    """A run. The defaults are the quickstart: handwritten digits, 3 parts, a few minutes on two cores.

    Attributes:
        run: the run directory; refused if it holds a run already.
        seed: of the initial weights, the order of the images, flips and noise.
        device: auto, cpu or cuda.
        precision: of the coupling networks: fp32, tf32 (on a GPU) or bf16; all else is fp32.
        layout: of the coupling networks' activations: contiguous, or channels_last, which is often faster.
        compile: none, steps (one graph for all steps of a shape) or part (one graph a part).
        cuda_graphs: replay a part's kernels instead of starting them one by one; needs a GPU, and adam or adamw; does
            nothing where processes average their gradients, nor in a pipeline end to end.
        activations: what stays for the backward pass: keep everything, checkpoint (what enters each step) or invert
            (what leaves the part: steps are inverted).
        flow: "glow", or what a script calls the flow of its own that it hands over.
        glow: shape of the model, where it is a Glow.
        data: which images.
        cut: where the borders are.
        phases: what is done, one after another.
        end_to_end: how the whole model is spread over them in an end_to_end phase.
        parallel: how parts are spread over processes.
        checkpoint: when the run is saved, and how much of that stays.
        ema: decay of a moving average of the weights, which `evaluate`, `sample` and `load` then use; None for none.
        eval_every: epochs between two evaluations on the test split; also at the end of every phase.
        max_bad_steps: updates skipped in a row, for a loss or gradient that is not finite, before the run stops.
    """

    run: str = "runs/quickstart"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    compile: Compile = "none"
    cuda_graphs: bool = False
    activations: Activations = "keep"
    flow: str = "glow"
    glow: GlowConfig = field(default_factory=lambda: GlowConfig(levels=2, steps=8, hidden=128))
    data: DataConfig = field(default_factory=lambda: DataConfig(batch=48))
    cut: CutConfig = field(default_factory=CutConfig)
    phases: list[PhaseConfig] = field(default_factory=_quickstart_phases)
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ema: float | None = None
    eval_every: float = 5.0
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases is empty; a run needs at least one phase.")
        for name in ("eval_every", "max_bad_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; a decay lies between 0 and 1, such as 0.999.")
        check_passage(self.activations, self.compile)
        if self.activations == "invert" and self.end_to_end.engine == "fsdp":
            raise ValueError(
                "activations is invert and end_to_end.engine is fsdp, but steps whose parameters are spread cannot be "
                "inverted alone; use activations checkpoint, or engine ddp."
            )
        for number, phase in enumerate(self.phases, 1):
            if self.cuda_graphs and phase.optimizer == "adamax":
                raise ValueError(
                    f"cuda_graphs is on, but the optimizer of phase {number} is adamax, for which the host looks at "
                    "every gradient; use adam or adamw, or leave cuda_graphs off."
                )
            if isinstance(phase.lr, list) and len(phase.lr) != self.cut.parts:
                raise ValueError(
                    f"Phase {number} lists {len(phase.lr)} learning rates for {self.cut.parts} parts (cut.parts)."
                )
        if self.flow != "glow":  # how many flow steps it has, only the script knows
            return
        flow_steps = self.glow.levels * self.glow.steps
        if self.cut.scheme != "balanced":
            scheme_cut(self.cut, self.glow.levels, self.glow.steps)
        elif self.cut.parts > flow_steps:
            raise ValueError(f"cut.parts is {self.cut.parts}, but the flow has only {flow_steps} flow steps.")

    def check_world(self, size: int, replicas: int = 1) -> None:
        """A ValueError where `size` processes cannot share a batch end to end, or `replicas` chains by parts."""
        joined = any(phase.schedule == "end_to_end" for phase in self.phases)
        pipelined = joined and self.pipelined(size // replicas)
        sharers, kind, where = (size, "processes", " in an end_to_end phase")
        if pipelined or not joined:
            sharers, kind, where = replicas, "replicas", ""
        if self.data.batch % sharers:
            raise ValueError(
                f"data.batch is {self.data.batch}, which {sharers} {kind} cannot share evenly{where}; "
                f"the nearest that they can is {max(1, round(self.data.batch / sharers)) * sharers}."
            )
        if pipelined:
            micro_batches(self.end_to_end.micro_batches, self.data.batch // replicas, size // replicas)

    def pipelined(self, stages: int) -> bool:
        """Whether end to end, chains of so many processes are pipelines; of one process, there is nothing to pass."""
        return self.end_to_end.engine == "pipeline" and stages > 1

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain lists, dicts, numbers and strings."""
        return dataclasses.asdict(self)

    def as_yaml(self) -> str:
        """As a file that `--config` reads back."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """A short hash of every setting, for processes to compare."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


def make_parser() -> ArgumentParser:
    """The parser of `python -m pipeflow.train`; `--help` lists every setting."""
    parser = ArgumentParser(
        prog="pipeflow.train", exit_on_error=False, allow_abbrev=False, description="Train a Glow by parts."
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; what follows it overrides it")
    parser.add_argument(
        "--resume", metavar="auto | PATH", help="go on from the run's newest whole checkpoint, or from this one"
    )
    parser.add_class_arguments(Config)
    return parser


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Command line → settings.

    Args:
        arguments: dotted names and values, such as ["--glow.levels", "2"]; the process's own by default.

    Raises:
        ValueError: a sentence about what is wrong: an unknown name, a value of the wrong kind or out of range.
    """
    return parse_resume(arguments)[0]


def parse_resume(
    arguments: Sequence[str] | None = None, base: dict[str, Any] | None = None
) -> tuple[Config, str | None]:
    """Like `parse`, and what `--resume` says: "auto", a path, or None where it is not there.

    Args:
        arguments: dotted names and values; the process's own by default.
        base: settings that they override, as `Config.as_dict` makes them; the quickstart by default.
    """
    if base is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as stream:
            yaml.safe_dump(base, stream)
            stream.flush()
            return parse_resume(["--config", stream.name, *(sys.argv[1:] if arguments is None else arguments)])
    # torchrun takes "--run" for the beginning of an option of its own; behind "--" it leaves words alone.
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != "--"]
    # Where lists are equally long, jsonargparse fills what a phase leaves out from the list that it replaces; here a
    # list is given whole.
    words = [part for word in words for part in (["--phases=[]", word] if re.match("--phases(=|$)", word) else [word])]
    check_plain(words, [member.name for member in dataclasses.fields(Config) if member.default is dataclasses.MISSING])
    parser = make_parser()
    try:
        values = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ValueError(sentence(str(error), _names(), _file(words))) from error
    values.pop("config", None)
    resume = values.pop("resume", None)
    return Config(**vars(values)), resume


def from_dict(values: dict[str, Any], words: Sequence[str] = ()) -> Config:
    """What `Config.as_dict` made, checked like a command line.

    Args:
        values: the settings.
        words: of a command line, which overrides them.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    return parse_resume(words, values)[0]


def _names(settings: type = Config, before: str = "") -> list[str]:
    """Dotted names of all settings; those of a phase are called phases.<name>."""
    names = []
    for member in dataclasses.fields(settings):
        inner = PhaseConfig if member.name == "phases" else member.type
        names.append(before + member.name)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            names += _names(inner, f"{before}{member.name}.")
    return names


def _file(words: Sequence[str]) -> str | None:
    """The last --config among the words."""
    files = [after for word, after in pairwise(words) if word == "--config"]
    files += [word.split("=", 1)[1] for word in words if word.startswith("--config=")]
    return files[-1] if files else None
