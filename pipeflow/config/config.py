"""All settings of a run, put together from the dataclasses of their owners."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from math import lcm
from typing import Annotated, Any, Literal

from pydantic import Field

from ..data import DataConfig
from ..distributed import ParallelConfig, unequal
from ..model import (
    FAMILIES,
    Activations,
    Compile,
    CutConfig,
    Family,
    GlowConfig,
    JetConfig,
    Layout,
    ModelSettings,
    Precision,
    TarFlowConfig,
    check_passage,
    family_cut,
)
from ..settings import AtLeast1, Positive, Seed, settings
from ..storage import CheckpointConfig
from .phases import EndToEndConfig, PhaseConfig
from .schedule import micro_batches
from .yaml_text import as_text

_MOST_STEPS = 100_000  # of a flow; some hundred are usual


def _quickstart_phases() -> list[PhaseConfig]:
    # 1,500 images are few: without weight decay the test bits/dim rise again after some 30 epochs.
    small_set: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 2.0}
    return [
        PhaseConfig("simultaneous", epochs=16.0, lr=4e-3, warmup_steps=50, **small_set),
        PhaseConfig("simultaneous", epochs=8.0, lr=8e-4, **small_set),
        PhaseConfig("end_to_end", epochs=1.75, lr=4e-4, **small_set),
    ]


@settings()
@dataclass(frozen=True)
class Config:
    """A run. The defaults are the quickstart: handwritten digits, 3 parts, a few minutes on two cores.

    Attributes:
        run_dir: where the run writes its files; a directory that holds a run already is refused.
        seed: of the initial weights, the order of the images, flips and noise.
        device: what computes; auto takes a GPU if there is one.
        precision: of the networks in couplings and blocks: fp32, tf32 (on a GPU) or bf16; all else is fp32.
        layout: of the activations in a Glow's networks: contiguous, or channels_last, which is often faster.
        compile: none, steps (one graph for all steps of a shape) or part (one graph per part).
        cuda_graphs: replay a part's kernels instead of starting them one by one; needs a GPU, and adam or adamw; does
            nothing where processes average their gradients, nor in a pipeline end to end.
        activations: what stays for the backward pass: all (keep), each step's input (checkpoint), or a part's output
            alone (invert).
        deterministic: only kernels that give the same bits every time, which may be slower; on a GPU no equal bits are
            promised without it. The CPU gives them always.
        flow: "glow", "jet", "tarflow", or the name of the flow that a script hands over.
        glow: shape of the model, where it is a Glow.
        jet: shape of the model, where it is a Jet.
        tarflow: shape of the model, where it is a TarFlow.
        data: which images, and how they enter.
        cut: where the borders between parts are.
        phases: how the flow is trained, one phase after another.
        end_to_end: how the model is spread over processes in an end_to_end phase.
        parallel: how parts are spread over processes.
        checkpoint: when the run is saved, and how much of that stays.
        ema: decay of a moving average of the weights, which `evaluate`, `sample` and `load` then use; None for none.
        eval_every: epochs between two evaluations on the test split, or on the validation split where the data have one
            (data.validation); also at the end of every phase.
        max_bad_steps: updates skipped in a row, for a loss or gradient that is not finite, before the run stops.
    """

    run_dir: str = "runs/quickstart"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    layout: Layout = "contiguous"
    compile: Compile = "none"
    cuda_graphs: bool = False
    activations: Activations = "keep"
    deterministic: bool = False
    flow: str = "glow"
    glow: GlowConfig = field(default_factory=lambda: GlowConfig(levels=2, steps=8, hidden=128))
    jet: JetConfig = field(default_factory=JetConfig)
    tarflow: TarFlowConfig = field(default_factory=TarFlowConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(batch=48))
    cut: CutConfig = field(default_factory=lambda: CutConfig(provisional_prior="flow"))
    phases: list[PhaseConfig] = field(default_factory=_quickstart_phases)
    end_to_end: EndToEndConfig = field(default_factory=EndToEndConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    ema: Annotated[float, Field(gt=0, lt=1, description="a number between 0 and 1, such as 0.999")] | None = None
    eval_every: Positive = 5.0
    max_bad_steps: AtLeast1 = 10

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases is empty; a run needs at least one phase.")
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
        unit = lcm(*self._check_replicas())
        if self.cuda_graphs and self.data.batch // unit % self.parallel.packets:
            raise ValueError(
                f"cuda_graphs is on, but {self.parallel.packets} micro-batches (parallel.micro_batches) of "
                f"{self.data.batch} images (data.batch) are not equal; choose a divisor, or leave cuda_graphs off."
            )
        if self.flow not in FAMILIES:  # how many flow steps it has, only the script knows
            return
        if self.flow == "glow" and self.data.labels:
            raise ValueError("data.labels is on, but the steps of a Glow take no labels; use the flow jet or tarflow.")
        if self.flow == "glow" and self.cut.head.depth != 1:
            raise ValueError(
                f"cut.head.depth is {self.cut.head.depth}, but a Glow has no transformers, whose layers it counts; "
                "leave it out."
            )
        if self.flow != "glow" and self.layout != "contiguous":
            raise ValueError(f"layout is {self.layout}, but the flow {self.flow} has no convolutions; leave it out.")
        if self.flow == "tarflow" and self.activations == "invert":
            raise ValueError(
                "activations is invert, but a TarFlow is inverted patch by patch, which takes too long in every "
                "backward pass; use activations checkpoint, or keep."
            )
        flow_steps = max(self.family.levels, 1) * self.family.steps
        if flow_steps > _MOST_STEPS:
            raise ValueError(f"The flow has {flow_steps} flow steps; no more than {_MOST_STEPS} can be trained.")
        if self.cut.scheme != "balanced":
            family_cut(self.cut, self.family)
        elif self.cut.parts > flow_steps:
            raise ValueError(f"cut.parts is {self.cut.parts}, but the flow has only {flow_steps} flow steps.")

    def _check_replicas(self) -> tuple[int, ...]:
        """Processes of each part where they are unequal, else empty; a ValueError where no run can be made of them."""
        if not (replicas := unequal(self.cut.parts, self.parallel.replicas)):
            return ()
        unit, given, batch = lcm(*replicas), f"parallel.replicas is {list(replicas)}", self.data.batch
        if batch % unit:
            raise ValueError(
                f"{given}, but the replicas of each part cannot share a batch of {batch} images (data.batch) evenly; "
                f"the nearest that they can is {max(1, round(batch / unit)) * unit}."
            )
        if self.parallel.packets > batch // unit:
            raise ValueError(
                f"{given}, and parallel.micro_batches {self.parallel.packets}, but a batch of {batch} images "
                f"(data.batch) makes at most {batch // unit} packets that each part can share evenly."
            )
        if self.end_to_end.engine == "pipeline" and any(phase.schedule == "end_to_end" for phase in self.phases):
            raise ValueError(
                f"{given}, but a pipeline (end_to_end.engine) needs equally many processes of each part; use engine "
                "ddp or fsdp."
            )
        if self.cut.scheme == "balanced":
            raise ValueError(
                f"{given}, but cut.scheme balanced makes parts that take equally long; use another cut, or equal "
                "replicas."
            )
        return replicas

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
        if self.parallel.packets > self.data.batch // sharers:
            raise ValueError(
                f"parallel.micro_batches is {self.parallel.packets}, but {sharers} {kind} that share a batch of "
                f"{self.data.batch} images (data.batch) have {self.data.batch // sharers} each."
            )
        if pipelined:
            micro_batches(self.end_to_end.micro_batches, self.data.batch // replicas, size // replicas)

    def pipelined(self, stages: int) -> bool:
        """Whether end to end, chains of so many processes are pipelines; of one process, there is nothing to pass."""
        return self.end_to_end.engine == "pipeline" and stages > 1

    @property
    def family(self) -> Family:
        """Shape of the model; of no meaning where a script hands over the flow."""
        others: dict[str, Family] = {"jet": self.jet, "tarflow": self.tarflow}
        return others.get(self.flow, self.glow)

    @property
    def noise(self) -> float | None:
        """Standard deviation of Gaussian noise on pixels in (−½, ½), if it takes the place of dequantisation's."""
        return self.tarflow.noise and 0.5 * self.tarflow.noise if self.flow == "tarflow" else None

    @property
    def model(self) -> ModelSettings:
        """The settings that the model depends on."""
        return ModelSettings(self.flow, self.family, self.cut, self.precision, self.layout, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain lists, dicts, numbers and strings."""
        return dataclasses.asdict(self)

    def as_yaml(self) -> str:
        """As a file that `--config` reads back."""
        return as_text(self.as_dict())

    def digest(self) -> str:
        """A short hash of every setting, for processes to compare."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]
