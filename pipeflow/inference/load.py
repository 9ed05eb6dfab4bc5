"""A finished run (or one that goes on) → flows to look at: the whole model, and the flow that stops at each border.

Also the smallest thing to hand on: one safetensors file of weights and a JSON of what they belong to, without
optimizer state, cut or settings of the training.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from
from safetensors.torch import save_file

from ..config import Config, from_dict
from ..data import Space, space
from ..model import CutConfig, Flow, GlowConfig, Maker, Truncated, averaged, build, check_flow, global_state
from ..storage import Manifest, check_own, check_tensors, checkpoint

EXPORT_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """A checkpoint to look at: where it is, what it says of itself, and the run's settings."""

    directory: Path
    manifest: Manifest
    config: Config

    @property
    def began(self) -> int:
        """How many parts have begun to learn."""
        at, started = self.manifest.at, self.manifest.started
        return sum(border <= started for border in at) + (started > max([0, *at]))


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, put together.

    Attributes:
        directory: of the checkpoint.
        manifest: what it says of itself.
        config: the run's settings.
        pixels: what the images look like.
        slices: the parts with their priors, in order.
        whole: all of them as one part; shares their modules.
    """

    directory: Path
    manifest: Manifest
    config: Config
    pixels: Space
    slices: list[Truncated]
    whole: Truncated

    def flow(self, parts: int | None = None) -> Flow:
        """The flow that stops behind the first `parts` parts, with its prior there; the whole by default."""
        if parts is None:
            return Flow([self.whole.part], self.whole.prior, self.pixels)
        return Flow([piece.part for piece in self.slices[:parts]], self.slices[parts - 1].prior, self.pixels)


def locate(place: str | Path) -> Source:
    """A run's newest whole checkpoint, or a checkpoint.

    Args:
        place: a run directory, or `RUN/checkpoints/step-<n>`.

    Raises:
        ValueError: there is nothing of the kind, or it is damaged.
    """
    directory: Path | None = Path(place)
    if not (Path(place) / "manifest.json").exists():
        directory, wrong = checkpoint.newest(Path(place))
        if directory is None:
            raise ValueError(f"{place} holds no checkpoint. {' '.join(wrong)}".strip())
    assert directory
    manifest = checkpoint.read_manifest(directory)
    try:
        return Source(directory, manifest, from_dict(manifest.config))
    except ValueError as error:
        raise ValueError(f"The settings in {directory} are damaged: {error}") from error


def read(place: str | Path | Source, flow: Maker | None = None) -> Trained:
    """A run's newest whole checkpoint, or a checkpoint; with averaged weights, where the run keeps them (`ema`).

    Args:
        place: a run directory, `RUN/checkpoints/step-<n>`, or what `locate` returned.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: there is nothing of the kind, it is damaged, or the flow is another.
    """
    source = place if isinstance(place, Source) else locate(place)
    tensors, manifest = checkpoint.load(source.directory)
    pixels = space(manifest.image, manifest.levels, source.config.data.bits)
    if flow is not None:
        check_own({"flow": check_flow(flow, source.config.flow, pixels.shape)}, manifest, source.directory)
    slices, whole = build(source.config.model, pixels, flow)
    expected = global_state(slices.values())
    check_tensors(expected, tensors, source.directory)
    for piece in slices.values():
        piece.load_global_state(expected | averaged(tensors))
    whole.eval()
    return Trained(source.directory, manifest, source.config, pixels, list(slices.values()), whole)


def load(place: str | Path, flow: Maker | None = None, parts: int | None = None) -> Flow:
    """The trained model as a plain module on the CPU: `log_prob`, `sample`, `encode`, `decode`.

    Args:
        place: a run directory, a checkpoint, or a `.safetensors` file that `export` wrote.
        flow: makes the steps, where they are those of a script's own flow.
        parts: the flow that stops behind so many parts, with its provisional prior; the whole model by default.

    Raises:
        ValueError: there is nothing of the kind, it is damaged, the flow is another, or has no such part.
    """
    if Path(place).suffix == ".safetensors":
        if parts is not None:
            raise ValueError(f"{place} is an exported flow, which has no parts; load it from its run.")
        return _imported(Path(place), flow)
    trained = read(place, flow)
    if parts is not None and not 1 <= parts <= len(trained.slices):
        raise ValueError(f"parts is {parts}, but the flow in {place} has parts 1 to {len(trained.slices)}.")
    return trained.flow(parts)


def export(place: str | Path, file: str | Path, flow: Maker | None = None) -> None:
    """Writes the weights of a run as `file` (.safetensors), and beside it, as .json, the model that they belong to.

    Args:
        place: a run directory or a checkpoint.
        file: where to; never written over.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: the run is none, the flow another, the name does not end in .safetensors, or is taken.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} must end in .safetensors.")
    about = file.with_suffix(".json")
    for path in (file, about):
        if path.exists():
            raise ValueError(f"{path} is there already, and is not written over.")
    trained = read(place, flow)
    config = trained.config
    settings: dict[str, Any] = {"format": EXPORT_FORMAT, "flow": config.flow, "glow": dataclasses.asdict(config.glow)}
    settings |= {"image": trained.manifest.image, "levels": trained.pixels.levels, "bits": config.data.bits}
    save_file({name: tensor.contiguous() for name, tensor in trained.whole.global_state().items()}, file)
    about.write_text(json.dumps(settings | {"step": trained.manifest.step}, indent=2) + "\n")


def _imported(file: Path, flow: Maker | None) -> Flow:
    about = file.with_suffix(".json")
    try:
        settings, tensors = json.loads(about.read_text()), tensors_from(file.read_bytes())
        if settings["format"] != EXPORT_FORMAT:
            raise ValueError(f"its format is {settings['format']}, this version reads {EXPORT_FORMAT}")
        pixels = space(settings["image"], settings["levels"], settings["bits"])
        glow, cut = GlowConfig(**settings["glow"]), CutConfig("explicit", 1, [])
        config = Config(flow=settings.get("flow", "glow"), glow=glow, cut=cut)
    except Exception as error:  # the reader of safetensors has an exception class of its own
        raise ValueError(f"{file} and {about.name} are no exported flow ({error}).") from error
    _, whole = build(config.model, pixels, flow)
    check_tensors(whole.global_state(), tensors, file)
    whole.load_global_state(tensors)
    return Flow([whole.part], whole.prior, pixels).eval()
