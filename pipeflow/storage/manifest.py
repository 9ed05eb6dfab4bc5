"""`manifest.json`: what a checkpoint says of itself, checked as it is read."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .files import read_plain
from .run_directory import MANIFEST

FORMAT = 2


def _all_parts(files: dict[str, str]) -> dict[str, str]:
    if not files or files.keys() != {f"part-{number}.safetensors" for number in range(1, len(files) + 1)}:
        raise ValueError("a checkpoint has a file for each part")
    return files


def _two_clocks(elapsed: dict[str, float]) -> dict[str, float]:
    if elapsed.keys() != {"seconds", "train_seconds"}:
        raise ValueError("two times are measured")
    return elapsed


def _ended(phase: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(phase.get(name), int | float) for name in ("seconds", "images_per_s")):
        raise ValueError("a phase has taken a time")
    return phase


EndedPhase = Annotated[dict[str, Any], AfterValidator(_ended)]
"""What a run says of a phase that has ended."""
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class Manifest:
    """Everything that a run needs to go on, besides the tensors.

    Attributes:
        step: batches drawn at the head so far.
        config: the run's settings, with an explicit cut.
        at: how many flow steps lie before each border.
        image: channels, height and width of an image, or shape of a point.
        levels: values of a stored pixel; 0 for points.
        begun: the step at which the first phase of these settings began.
        phases: for each phase that has ended, what `result.json` will say of it.
        elapsed: seconds that the phase in progress has taken: "seconds" in all, "train_seconds" without evaluations.
        started: how many flow steps have had their data-dependent start.
        moments_of: the kind of optimizer that the moments belong to.
        test_bits_per_dim, validation_bits_per_dim: of the model at this step, on the split on which the run is
            evaluated; None where it was not evaluated, or not on this split.
        versions: of the libraries that computed it.
        files: file name → SHA-256.
        classes: number of different labels of the data; 0 where it was trained without.
        own: short hashes of the "flow" and "data" that a script has handed over; settings do not tell them apart.
        format: version of this layout.
    """

    step: Count
    config: dict[str, Any]
    at: list[Count]
    image: Annotated[list[Annotated[Count, Field(gt=0)]], Field(min_length=1)]
    levels: Count
    begun: Count
    phases: list[EndedPhase]
    elapsed: Annotated[dict[str, float], AfterValidator(_two_clocks)]
    started: Count
    moments_of: str | None
    test_bits_per_dim: float | None
    versions: dict[str, Any]
    files: Annotated[dict[str, str], AfterValidator(_all_parts)]
    own: dict[str, str] = field(default_factory=dict)
    validation_bits_per_dim: float | None = None
    classes: Count = 0
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    @property
    def bits_per_dim(self) -> float | None:
        """By which checkpoints are compared: on the validation split, and without one on the test split."""
        return self.test_bits_per_dim if self.validation_bits_per_dim is None else self.validation_bits_per_dim


_READER = TypeAdapter(Manifest)


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint; a ValueError if there is none, it is damaged, or of another version."""
    file = checkpoint / MANIFEST
    try:
        content = read_plain(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint: it has no {MANIFEST}.") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it is no JSON object.")
    if found.get("format") != FORMAT:
        raise ValueError(f"{checkpoint} has checkpoint format {found.get('format')}; this version reads {FORMAT}.")
    try:
        manifest = _READER.validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{file} is damaged: {_sentence(error, found)}.") from error
    if manifest.levels and len(manifest.image) != 3:
        raise ValueError(f"{file} is damaged: image is {manifest.image}.")
    if len(manifest.at) != len(manifest.files) - 1 or manifest.at != sorted({*manifest.at}):
        raise ValueError(f"{file} is damaged: at is {manifest.at} for {len(manifest.files)} parts.")
    if manifest.begun > manifest.step:
        raise ValueError(f"{file} is damaged: begun is {manifest.begun}, after step {manifest.step}.")
    if checkpoint.name.startswith("step-") and checkpoint.name != f"step-{manifest.step}":
        raise ValueError(f"{file} is of step {manifest.step}, which is not what its directory is called.")
    return manifest


def _sentence(error: ValidationError, found: dict[str, Any]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} is no entry of a manifest"
    return f"{name} is {json.dumps(found[name])[:80]}" if name in found else f"{name} is missing"


def check_own(own: dict[str, str], manifest: Manifest, source: Path) -> None:
    """A ValueError where a script hands over another flow, or other data, than those of the checkpoint."""
    for what, digest in own.items():
        if manifest.own.get(what, digest) != digest:
            raise ValueError(
                f"The {what} handed over {'is' if what == 'flow' else 'are'} not what {source} was made with (hash "
                f"{digest}, there {manifest.own[what]}); what a run has begun with cannot change. Hand over the same, "
                "or start a new run."
            )
