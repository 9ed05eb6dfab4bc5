"""What a script hands over: a flow and data of its own, looked at before anything is written.

No setting names code to import, so a flow of one's own cannot come out of a file; it is a function in the script that
trains it, and every process runs the script. The run's settings hold its name alone. Whether its steps keep the
contract that every part relies on (flow/step.py), a few random latents find out.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .data import DataConfig
from .flow import Event, Step
from .part import flow_step_positions
from .sources import ImageSet, load

Maker = Callable[[], Sequence[Step]]
"""Makes the steps of a flow, in order, anew at every call; random weights come from torch's global generator."""

Splits = tuple[ArrayLike, ArrayLike]
"""Training and test data: float (N, *event), or images as uint8 (N, H, W, C)."""


def own_steps(make: Maker, seed: int) -> list[Step]:
    """The steps at their initial weights, which depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return list(make())


def check_name(name: str, make: Maker | None) -> None:
    """A ValueError where the settings call a flow one of a script's own and none is there, or the other way round."""
    if make is None and name != "glow":
        raise ValueError(
            f"The flow '{name}' is one of a script's own, and only that script can make its steps: there, say "
            "pipeflow.fit(…, flow=…) or pipeflow.load(RUN, flow=…), and main([RUN], flow=…) of pipeflow.evaluate or "
            "pipeflow.sample."
        )
    if make is not None and name == "glow":
        raise ValueError("A flow is handed over, but the settings say flow: glow; give yours a name, Config(flow=…).")


def check_flow(make: Maker, name: str, event: Event) -> str:
    """Sends a few random latents down the flow, and compares what its steps do with what they say.

    Args:
        make: makes the steps.
        name: of the flow, for sentences.
        event: shape of what enters.

    Returns:
        A short hash of what the steps are: their classes, and names and shapes of their parameters and buffers.

    Raises:
        ValueError: what is handed over is no flow, does not fit the data, or breaks the contract of a step.
    """
    steps = own_steps(make, 0)
    others = [type(step).__name__ for step in steps if not isinstance(step, Step)]
    if others or not flow_step_positions(steps):
        found = f"holds a {others[0]}" if others else "has no flow step"
        raise ValueError(f"The flow '{name}' {found}; it must be a list of steps, each a pipeflow.flow.Step.")
    owner: dict[int, int] = {}
    kinds = hashlib.sha256()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        z = torch.randn(4, *event)
        for number, step in enumerate(steps):
            for tensor in [*step.parameters(), *step.buffers()]:
                if (first := owner.setdefault(id(tensor), number)) != number:
                    raise ValueError(
                        f"steps.{first} and steps.{number} of the flow '{name}' share a parameter or buffer; parts "
                        "learn apart, so every step must have its own."
                    )
            shapes = {name: tuple(tensor.shape) for name, tensor in step.state_dict().items()}
            kinds.update(f"{type(step).__qualname__} {shapes};".encode())
            z = _behind(step, z, f"steps.{number} of the flow '{name}' ({type(step).__name__})")
    return kinds.hexdigest()[:16]


def _behind(step: Step, z: Tensor, who: str) -> Tensor:
    """z behind a step that keeps its contract."""
    event, given = tuple(z.shape[1:]), z.clone()
    out: Tensor
    try:
        (out, dlogp), (again, _, eps) = step(z), step.encode(z)
        back: Tensor = step.inverse(out, eps)
        said, said_eps = tuple(step.out_shape(event)), step.eps_shape(event)
    except Exception as error:  # a step that others wrote raises anything at all
        text = " ".join(str(error).split())
        raise ValueError(f"{who} does not take latents of shape {event}: {type(error).__name__}: {text}.") from error
    left = None if eps is None else tuple(eps.shape[1:])
    for wrong, what in [
        (tuple(out.shape[1:]) != said, f"makes latents of shape {tuple(out.shape[1:])}, its out_shape says {said}"),
        (left != said_eps, f"lets variables of shape {left} leave, its eps_shape says {said_eps}"),
        (dlogp.shape != z.shape[:1], f"gives dlogp of shape {tuple(dlogp.shape)}; one number an example is due, (B,)"),
        (out.dtype != z.dtype or dlogp.dtype != z.dtype, f"makes {out.dtype} and {dlogp.dtype}; both must be float32"),
        (not torch.equal(z, given), "writes into its argument, which is not its own"),
        (not torch.equal(out, again), "makes two things of the same latents; nothing in it may be random"),
        (back.shape != z.shape or not torch.allclose(back, z, 1e-3, 1e-3), "is not undone by its inverse"),
        (step.entry not in ("log_det", "split_prior"), f"has the entry {step.entry!r}: log_det or split_prior"),
        (step.place not in ("step", "opens", "closes"), f"has the place {step.place!r}: step, opens or closes"),
    ]:
        if wrong:
            raise ValueError(f"{who} {what}.")
    return out


def images_of(config: DataConfig, data: Splits | None = None) -> tuple[ImageSet, dict[str, str]]:
    """The two splits that the settings name, or that a script hands over; of the latter a hash, as "data".

    Raises:
        ValueError: the settings and what is handed over do not go together, or either is unfit.
    """
    if config.name == "own":
        if data is None:
            raise ValueError(
                "data.name is own, but no data are handed over: in the script that has them, say data=(train, test)."
            )
        images, digest = own_data(data)
        return images, {"data": digest}
    if data is not None:
        raise ValueError(f"Data are handed over, but data.name is {config.name}; set it to own.")
    return load(config.name, config.root, config.image_size, config.on_corrupt), {}


def own_data(splits: Splits) -> tuple[ImageSet, str]:
    """Data that a script hands over.

    Args:
        splits: training and test data, every process the same.

    Returns:
        The data, float32 or uint8, and a short hash of them.

    Raises:
        ValueError: arrays of another kind, of two shapes, or with values that are not finite.
    """
    train, test = (np.ascontiguousarray(split) for split in splits)
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise ValueError(
            f"The training data are {train.dtype} of shape {train.shape}, the test data {test.dtype} of shape "
            f"{test.shape}; but for their number they must be alike."
        )
    images = train.dtype == np.uint8 and train.ndim == 4
    points = np.issubdtype(train.dtype, np.floating) and train.ndim > 1
    if not (images or points) or 0 in (*train.shape, len(test)):
        raise ValueError(
            f"The data are {train.dtype} of shapes {train.shape} and {test.shape}; they must be points, float of shape "
            "(N, D) or (N, …), or images, uint8 of shape (N, H, W, C), and neither split may be empty."
        )
    if points:
        train, test = train.astype(np.float32, copy=False), test.astype(np.float32, copy=False)
        if not (np.isfinite(train).all() and np.isfinite(test).all()):
            raise ValueError("The data hold values that are not finite.")
    digest = hashlib.sha256(f"{train.dtype} {train.shape} {test.shape}".encode())
    for split in (train, test):
        digest.update(split.data)
    return ImageSet(train, test, levels=256 if images else 0), digest.hexdigest()[:16]
