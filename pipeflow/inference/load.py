"""A run, finished or not → its trained flow: the model, and the flow that stops at each border."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..config import Config, from_dict
from ..data import Space, space
from ..distributed import World
from ..model import Flow, Maker, Truncated, averaged, build, check_flow, global_state, is_average
from ..storage import Manifest, RunDirectory, check_names, check_own, check_values, checkpoint
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
        return space(self.manifest.image, self.manifest.levels, self.config.data.bits, self.config.noise)

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


def locate(path: str | Path, verify: bool = True) -> Source:
    """Finds the newest undamaged checkpoint of a run, or takes the checkpoint that `path` is.

    Args:
        path: a run directory, or `RUN/checkpoints/step-<n>`.
        verify: compare all files with their checksums; else only the manifest is read.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    if (Path(path) / "manifest.json").exists():
        return _source(Path(path), verify)
    wrong = ""
    for step in reversed(checkpoint.steps_saved(Path(path))):
        try:
            return _source(RunDirectory(Path(path)).checkpoint(step), verify)
        except ValueError as error:
            wrong += f" {error}"
    raise ValueError(f"{path} holds no checkpoint.{wrong}")


def locate_together(world: World, path: str | Path) -> Source:
    """Like `locate`, in every process: rank 0 looks for the checkpoint and verifies its files, and tells the others."""
    return locate(world.on_rank_0(lambda: str(locate(path).directory)), verify=False)


def _source(directory: Path, verify: bool) -> Source:
    manifest = (checkpoint.verify if verify else checkpoint.read_manifest)(directory)
    try:
        return Source(directory, manifest, from_dict(manifest.config))
    except ValueError as error:
        raise ValueError(f"The settings in {directory} are damaged: {error}") from error


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
    fill(slices, source)
    return Trained(source.directory, source.manifest, source.config, list(slices.values()), model)


def check_user_flow(source: Source, flow: Maker | None) -> None:
    """A ValueError where a script hands over another flow than the checkpoint's."""
    if flow is not None:
        digest = check_flow(flow, source.config.flow, source.data_space.shape)
        check_own({"flow": digest}, source.manifest, source.directory)


def fill(slices: dict[int, Truncated], source: Source) -> None:
    """Puts the weights of a checkpoint into some of its parts, or their averages where the run keeps them.

    Reads the files of these parts alone, and no optimizer moments.

    Args:
        slices: position → part.
        source: the checkpoint.

    Raises:
        ValueError: the files are damaged, or belong to another model.
    """
    files = {name: source.manifest.files[name] for name in (f"part-{part + 1}.safetensors" for part in slices)}
    located = checkpoint.locate_tensors(source.directory, replace(source.manifest, files=files))
    initial = global_state(slices.values())
    check_names(initial, located, source.directory)
    tensors = checkpoint.read_tensors(located, [name for name in located if name in initial or is_average(name)])
    check_values(initial, tensors, source.directory)
    for piece in slices.values():
        piece.load_global_state(initial | averaged(tensors))
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
