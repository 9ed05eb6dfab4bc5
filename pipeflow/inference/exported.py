"""The smallest thing to hand on: one safetensors file of weights, and a JSON file that says which model they belong to.

Neither holds optimizer state, the cut, or the settings of the training.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from
from safetensors.torch import save_file

from ..config import Config, from_dict
from ..data import Space, space
from ..model import FAMILIES, Flow, Maker, Truncated, build
from ..storage import check_tensors

EXPORT_FORMAT = 1


def check_free(file: Path) -> None:
    """A ValueError where a flow cannot be exported to `file`: another suffix, or something is there already."""
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} must end in .safetensors.")
    for path in (file, file.with_suffix(".json")):
        if path.exists():
            raise ValueError(f"{path} is there already, and is not written over.")


def write_exported(file: Path, model: Truncated, config: Config, data_space: Space, step: int) -> None:
    """Writes the weights as `file`, and the model and data that they belong to beside it as JSON."""
    name = config.flow if config.flow in FAMILIES else "glow"
    settings: dict[str, Any] = {"format": EXPORT_FORMAT, "flow": config.flow, name: dataclasses.asdict(config.family)}
    settings |= {"image": list(data_space.shape), "levels": data_space.levels, "bits": config.data.bits, "step": step}
    save_file({name: tensor.contiguous() for name, tensor in model.global_state().items()}, file)
    file.with_suffix(".json").write_text(json.dumps(settings, indent=2) + "\n")


def read_exported(file: Path, flow: Maker | None) -> Flow:
    """The model that `write_exported` wrote; `flow` makes its steps, where they are a script's own.

    Raises:
        ValueError: the files are no exported flow, or the flow is another.
    """
    about = file.with_suffix(".json")
    try:
        settings, tensors = json.loads(about.read_text()), tensors_from(file.read_bytes())
        if settings["format"] != EXPORT_FORMAT:
            raise ValueError(f"its format is {settings['format']}, this version reads {EXPORT_FORMAT}")
        name = settings.get("flow", "glow")
        section = name if name in FAMILIES else "glow"
        cut = {"scheme": "explicit", "parts": 1, "at": []}
        config = from_dict({"flow": name, section: settings[section], "cut": cut})
        data_space = space(settings["image"], settings["levels"], settings["bits"], config.noise)
    except Exception as error:  # the reader of safetensors has an exception class of its own
        raise ValueError(f"{file} and {about.name} are no exported flow ({error}).") from error
    _, model = build(config.model, data_space, flow)
    check_tensors(model.global_state(), tensors, file)
    model.load_global_state(tensors)
    return Flow([model.part], model.prior, data_space).eval()
