"""A run, finished or not → its trained flow: the model, and the flow that stops at each border."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config import Config, from_dict
from ..data import Space, space
from ..model import Flow, Maker, Truncated, averaged, build, check_flow, global_state
from ..storage import Manifest, check_own, check_tensors, checkpoint
from .exported import check_free, read_exported, write_exported


@dataclass(frozen=True)
class Source:
    """A checkpoint: where it is, what it says of itself, and the settings of its run."""

    directory: Path
    manifest: Manifest
    config: Config

    @property
    def data_space(self) -> Space:
        """What the data of the run look like."""
        return space(self.manifest.image, self.manifest.levels, self.config.data.bits)

    @property
    def parts_begun(self) -> int:
        """How many parts have begun to learn."""
        at, started = self.manifest.at, self.manifest.started
        return sum(border <= started for border in at) + (started > max([0, *at]))


@dataclass(frozen=True)
class Trained(Source):
    """A checkpoint with its model.

    Attributes:
        slices: the parts with their priors, in order.
        model: all of them as one part; shares their modules.
    """

    slices: list[Truncated]
    model: Truncated

    def flow(self, parts: int | None = None) -> Flow:
        """The flow that stops after the first `parts` parts, with its prior there; the model by default."""
        if parts is None:
            return Flow([self.model.part], self.model.prior, self.data_space)
        return Flow([piece.part for piece in self.slices[:parts]], self.slices[parts - 1].prior, self.data_space)


def locate(path: str | Path) -> Source:
    """Finds the newest undamaged checkpoint of a run, or takes the checkpoint that `path` is.

    Args:
        path: a run directory, or `RUN/checkpoints/step-<n>`.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    directory: Path | None = Path(path)
    if not (Path(path) / "manifest.json").exists():
        directory, wrong = checkpoint.newest(Path(path))
        if directory is None:
            raise ValueError(f"{path} holds no checkpoint. {' '.join(wrong)}".strip())
    assert directory
    return source_of(directory)


def source_of(directory: Path) -> Source:
    """Reads what a checkpoint says of itself, without its tensors.

    Raises:
        ValueError: there is no manifest, or it is damaged.
    """
    manifest = checkpoint.read_manifest(directory)
    try:
        return Source(directory, manifest, from_dict(manifest.config))
    except ValueError as error:
        raise ValueError(f"The settings in {directory} are damaged: {error}") from error


def newest_settings(path: str | Path) -> Config:
    """The settings of a run's newest checkpoint, or of a checkpoint, whose tensors are not looked at.

    Raises:
        ValueError: there is no checkpoint with a readable manifest.
    """
    run, wrong = Path(path), ""
    if (run / "manifest.json").exists():
        return source_of(run).config
    for step in reversed(checkpoint.steps_saved(run)):
        try:
            return source_of(run / "checkpoints" / f"step-{step}").config
        except ValueError as error:
            wrong += f" {error}"
    raise ValueError(f"{path} holds no checkpoint.{wrong}")


def read(path: str | Path | Source, flow: Maker | None = None) -> Trained:
    """Loads a checkpoint, with averaged weights where the run keeps them (`ema`).

    Args:
        path: a run directory, `RUN/checkpoints/step-<n>`, or what `locate` returned.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or the flow is another.
    """
    source = path if isinstance(path, Source) else locate(path)
    check_user_flow(source, flow)
    slices, model = build(source.config.model, source.data_space, flow)
    tensors, _ = checkpoint.load(source.directory)
    fill(list(slices.values()), tensors, source)
    return Trained(source.directory, source.manifest, source.config, list(slices.values()), model)


def check_user_flow(source: Source, flow: Maker | None) -> None:
    """A ValueError where a script hands over another flow than the checkpoint's."""
    if flow is not None:
        digest = check_flow(flow, source.config.flow, source.data_space.shape)
        check_own({"flow": digest}, source.manifest, source.directory)


def fill(slices: list[Truncated], tensors: dict[str, Tensor], source: Source) -> None:
    """Puts the tensors of a checkpoint into parts, averages in place of the weights that have one.

    Raises:
        ValueError: they are not the parts' tensors.
    """
    expected = global_state(slices)
    check_tensors(expected, tensors, source.directory)
    for piece in slices:
        piece.load_global_state(expected | averaged(tensors))
        piece.eval()


def load(path: str | Path, flow: Maker | None = None, parts: int | None = None) -> Flow:
    """Loads a trained model as a plain module on the CPU: `log_prob`, `sample`, `encode`, `decode`.

    Args:
        path: a run directory, a checkpoint, or a `.safetensors` file that `export` wrote.
        flow: makes the steps, where they are those of a script's own flow.
        parts: the flow that stops after so many parts, with its provisional prior; the whole model by default.

    Raises:
        ValueError: there is no such file or checkpoint, it is damaged, the flow is another, or has no such part.
    """
    if Path(path).suffix == ".safetensors":
        if parts is not None:
            raise ValueError(f"{path} is an exported flow, which has no parts; load it from its run.")
        return read_exported(Path(path), flow)
    trained = read(path, flow)
    if parts is not None and not 1 <= parts <= len(trained.slices):
        raise ValueError(f"parts is {parts}, but the flow in {path} has parts 1 to {len(trained.slices)}.")
    return trained.flow(parts)


def export(path: str | Path, file: str | Path, flow: Maker | None = None) -> None:
    """Writes the weights of a run as `file` (.safetensors), and beside it, as .json, the model that they belong to.

    Args:
        path: a run directory or a checkpoint.
        file: the file to write; an existing one is never written over.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: there is no checkpoint, the flow is another, the name does not end in .safetensors, or is taken.
    """
    check_free(Path(file))
    trained = read(path, flow)
    write_exported(Path(file), trained.model, trained.config, trained.data_space, trained.manifest.step)
