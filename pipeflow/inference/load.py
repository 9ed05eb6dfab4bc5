"""A run, finished or not → its trained flow: the model, the flow that stops at each border, and an exported file."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from
from safetensors.torch import save_file

from ..config import Config, from_dict
from ..data import PUBLISHED, DataConfig, Images, Labels, Space, Split, Splits, images_of, space
from ..distributed import World
from ..model import FAMILIES, Flow, Maker, Truncated, averaged, build, check_flow, global_state, is_average
from ..storage import MANIFEST, Manifest, check_names, check_own, check_values, checkpoint, read_plain

EXPORT_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """A checkpoint: where it is, what it says of itself, and the settings of its run."""

    directory: Path
    manifest: Manifest
    config: Config

    @property
    def data_space(self) -> Space:
        """What the data of the run look like."""
        return space(
            self.manifest.image, self.manifest.levels, self.config.data.bits, self.config.noise, self.manifest.classes
        )

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

    def held_out_images(
        self, config: DataConfig, data: Splits | None, split: Split = "test"
    ) -> tuple[Images, Labels | None]:
        """Images (N, H, W, C) uint8, or points (N, *event) float32, of a data set, or of a script's own `data`.

        With their labels, (N,), where the flow takes them. The split "validation" is of the run's own data only. A
        ValueError says that they are not there, that they have another shape, number of levels or labels than the
        run's, or that the run has no such split.
        """
        if split == "validation" and not config.validation:
            raise ValueError(f"{self.directory} has no validation split: data.validation is 0 in its run.")
        shape, levels = self.data_space.shape, self.data_space.levels
        if config.name in PUBLISHED:  # what it looks like is known before a download
            side = PUBLISHED[config.name].size
            if levels != 256 or side != shape[1]:
                raise self._unlike(config.name, f"{side}×{side} pixels with 256 levels")
        try:
            images, digests = images_of(config, data)
        except ValueError as error:
            raise ValueError(str(error).replace("--data.root", "--root")) from error
        check_own(digests, self.manifest, self.directory)
        event = images.test.shape[1:]
        found = (event[2], *event[:2]) if images.levels else event
        if found != shape or images.levels != levels:
            raise self._unlike(config.name, f"{'×'.join(map(str, found))} with {images.levels} levels")
        if images.classes > self.manifest.classes:
            raise ValueError(f"{config.name} has {images.classes} classes, but the flow knows {self.manifest.classes}.")
        if split == "validation":
            images = images.hold_out(config.validation, self.config.seed)
        return images.test if split == "test" else images.evaluated()[1], images.labels.get(split)

    def _unlike(self, name: str, found: str) -> ValueError:
        wanted = f"{'×'.join(map(str, self.data_space.shape))} with {self.data_space.levels} levels"
        return ValueError(
            f"The images of {name} are {found}, those of the run {wanted}; its flow can score no others. Say with "
            "--root where the run's own are."
        )


def locate(path: str | Path, verify: bool = True) -> Source:
    """Finds the newest undamaged checkpoint of a run, or takes the checkpoint (`RUN/checkpoints/step-<n>`) at `path`.

    With `verify` all files are compared with their checksums; else only the manifest is read. A ValueError says that
    there is no checkpoint, or how it is damaged.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return _source(path, verify)
    found, wrong = checkpoint.newest(path, partial(_source, verify=verify))
    if found is None:
        raise ValueError(" ".join([f"{path} holds no checkpoint.", *wrong]))
    return _source(found, verify=False)


def locate_together(world: World, path: str | Path) -> Source:
    """Like `locate`, in every process: rank 0 looks for the checkpoint, verifies its files, and tells the others."""
    return locate(world.on_rank_0(lambda: str(locate(path).directory)), verify=False)


def _source(directory: Path, verify: bool) -> Source:
    manifest = (checkpoint.verify if verify else checkpoint.read_manifest)(directory)
    try:
        config = from_dict(manifest.config)
        if config.cut.parts != len(manifest.files):
            raise ValueError(f"cut.parts is {config.cut.parts}, but there are {len(manifest.files)} files of parts.")
        return Source(directory, manifest, config)
    except ValueError as error:
        raise ValueError(f"The settings in {directory} are damaged: {error}") from error


def read(path: str | Path | Source, flow: Maker | None = None) -> Trained:
    """Loads what `locate` finds or has found, with averaged weights where the run keeps them (`ema`).

    `flow` makes the steps, where they are those of a script's own flow; a ValueError if it is another.
    """
    source = path if isinstance(path, Source) else locate(path)
    check_user_flow(source, flow)
    slices, model = build(source.config.model, source.data_space, flow)
    fill(slices, source)
    return Trained(source.directory, source.manifest, source.config, list(slices.values()), model)


def check_user_flow(source: Source, flow: Maker | None) -> None:
    """A ValueError where a script hands over another flow than the checkpoint's."""
    if flow is not None:
        digest = check_flow(flow, source.config.flow, source.data_space.shape, source.data_space.classes)
        check_own({"flow": digest}, source.manifest, source.directory)


def fill(slices: dict[int, Truncated], source: Source) -> None:
    """Puts the weights of a checkpoint into some of its parts, or their averages where the run keeps them.

    Reads the files of these parts alone, by position, and no optimizer moments; a ValueError if they are damaged, or
    belong to another model.
    """
    files = {name: source.manifest.files[name] for name in (f"part-{part + 1}.safetensors" for part in slices)}
    located = checkpoint.locate_tensors(source.directory, dataclasses.replace(source.manifest, files=files))
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
        return _read_exported(Path(path), flow)
    trained = read(path, flow)
    if parts is not None and not 1 <= parts <= len(trained.slices):
        raise ValueError(f"parts is {parts}, but the flow in {path} has parts 1 to {len(trained.slices)}.")
    return trained.flow(parts)


def export(path: str | Path, file: str | Path, flow: Maker | None = None) -> None:
    """Writes the weights of a run as `file` (.safetensors), and beside it, as .json, the model that they belong to.

    Neither holds optimizer state, the cut, or the settings of the training.

    Args:
        path: a run directory or a checkpoint.
        file: the file to write; an existing one is never written over.
        flow: makes the steps, where they are those of a script's own flow.

    Raises:
        ValueError: there is no checkpoint, the flow is another, the name does not end in .safetensors, or is taken.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} must end in .safetensors.")
    for taken in (file, file.with_suffix(".json")):
        if taken.exists():
            raise ValueError(f"{taken} is there already, and is not written over.")
    trained = read(path, flow)
    config, pixels = trained.config, trained.data_space
    section = config.flow if config.flow in FAMILIES else "glow"
    about: dict[str, Any] = {"format": EXPORT_FORMAT, "flow": config.flow, section: dataclasses.asdict(config.family)}
    about |= {"image": list(pixels.shape), "levels": pixels.levels, "bits": config.data.bits}
    about |= {"classes": pixels.classes} if pixels.classes else {}
    save_file({name: tensor.contiguous() for name, tensor in trained.model.global_state().items()}, file)
    file.with_suffix(".json").write_text(json.dumps(about | {"step": trained.manifest.step}, indent=2) + "\n")


def _read_exported(file: Path, flow: Maker | None) -> Flow:
    """The model that `export` wrote; a ValueError if the files are no exported flow, or the flow is another."""
    about = file.with_suffix(".json")
    try:
        settings, tensors = json.loads(read_plain(about)), tensors_from(read_plain(file, sys.maxsize))
        if settings["format"] != EXPORT_FORMAT:
            raise ValueError(f"its format is {settings['format']}, this version reads {EXPORT_FORMAT}")
        name = settings.get("flow", "glow")
        section = name if name in FAMILIES else "glow"
        cut = {"scheme": "explicit", "parts": 1, "at": [], "provisional_prior": "standard"}
        config = from_dict({"flow": name, section: settings[section], "cut": cut})
        data_space = space(
            settings["image"], settings["levels"], settings["bits"], config.noise, settings.get("classes", 0)
        )
    except Exception as error:  # the reader of safetensors has an exception class of its own
        raise ValueError(f"{file} and {about.name} are no exported flow ({error}).") from error
    _, model = build(config.model, data_space, flow)
    check_names(model.global_state(), tensors, file)
    check_values(model.global_state(), tensors, file)
    model.load_global_state(tensors)
    return Flow([model.part], model.prior, data_space).eval()
