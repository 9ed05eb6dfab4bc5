"""`manifest.json`: what a checkpoint says of itself, checked as it is read."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

FORMAT = 2
_FILE = "manifest.json"


def _all_parts(files: dict[str, str]) -> dict[str, str]:
    if not files or files.keys() != {f"part-{number}.safetensors" for number in range(1, len(files) + 1)}:
        raise ValueError("a checkpoint has a file for each part")
    return files


def _two_clocks(elapsed: dict[str, float]) -> dict[str, float]:
    if elapsed.keys() != {"seconds", "train_seconds"}:
        raise ValueError("two times are measured")
    return elapsed


Count = Annotated[int, Field(ge=0)]


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
        own: short hashes of the "flow" and "data" that a script has handed over; settings do not tell them apart.
        format: version of this layout.
    """

    step: Count
    config: dict[str, Any]
    at: list[Count]
    image: Annotated[list[Count], Field(min_length=1)]
    levels: Count
    begun: Count
    phases: list[dict[str, Any]]
    elapsed: Annotated[dict[str, float], AfterValidator(_two_clocks)]
    started: Count
    moments_of: str | None
    test_bits_per_dim: float | None
    versions: dict[str, Any]
    files: Annotated[dict[str, str], AfterValidator(_all_parts)]
    own: dict[str, str] = field(default_factory=dict)
    validation_bits_per_dim: float | None = None
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    @property
    def bits_per_dim(self) -> float | None:
        """By which checkpoints are compared: on the validation split, and without one on the test split."""
        return self.test_bits_per_dim if self.validation_bits_per_dim is None else self.validation_bits_per_dim


_READER = TypeAdapter(Manifest)


def manifest_file(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint is."""
    return checkpoint / _FILE


def manifest_json(manifest: Manifest) -> str:
    """The content of `manifest.json`."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, its form checked.

    Raises:
        ValueError: there is none, it is damaged, or its format is of another version.
    """
    file = manifest_file(checkpoint)
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint: it has no {_FILE}.") from error
    try:
        found = json.loads(content)
    except ValueError:
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
    if checkpoint.name.startswith("step-") and checkpoint.name != f"step-{manifest.step}":
        raise ValueError(f"{file} is of step {manifest.step}, which is not what its directory is called.")
    return manifest


def _sentence(error: ValidationError, found: dict[str, Any]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        return f"{name} is no entry of a manifest"
    return f"{name} is {json.dumps(found[name])[:80]}" if name in found else f"{name} is missing"
