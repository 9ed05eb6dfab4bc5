"""How many kernels a training step launches, counted without a GPU.

    python -m benchmarks.step.launches [--quick] [--json FILE]      (a minute)

Glow 3 × 32 on 3×32×32 as it would run on a GPU: the operations that a GPU takes, fused Adam, many tensors at once.
Launches depend neither on the width nor on the batch or the size of the images, so all three are small here. Every
operation that PyTorch dispatches counts as one launch, but for views and allocations, which are none, and operations on
lists of tensors, which are one for so many tensors. A convolution is one here, either way; on a GPU its bias is another
kernel, its backward pass two or three, and libraries may add some to change how tensors lie.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lib.results import about, keep, make_parser, table
from benchmarks.lib.workload import Workload
from pipeflow.stage import Average, EagerStep, Update, make_optimizer

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16, channels last": {"precision": "bf16", "layout": "channels_last"},
    "bf16, channels last, invert": {"precision": "bf16", "layout": "channels_last", "activations": "invert"},
}
PHASES = ("forward", "backward", "update", "EMA")
# Operations that only say how memory is to be read, besides those that PyTorch marks as views.
NO_LAUNCH = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::_unsafe_view"}
NO_LAUNCH |= {"aten::new_empty_strided", "aten::_reshape_alias", "aten::detach", "aten::lift_fresh"}
# Tensors of one launch, by lists that the operation takes: MultiTensorApply.cuh of PyTorch.
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36}
ADAM_TENSORS_A_LAUNCH = 36
CAT_TENSORS_A_LAUNCH = 128
TWO = {"aten::slice_backward", "aten::select_backward"}  # zeros, and a copy


class Launches(TorchDispatchMode):
    """Counts them.

    Attributes:
        phase: what the step is at.
        counts: phase → operation → launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = PHASES[0]
        self.counts: dict[str, Counter[str]] = {phase: Counter() for phase in PHASES}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not (func.is_view or name in NO_LAUNCH or name.startswith("profiler::")):
            self.counts[self.phase][name] += _launches(name, args)
        return func(*args, **(kwargs or {}))

    def during(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The work, counted as a phase of its own."""

        def counted(*args: Any, **keywords: Any) -> Any:
            before, self.phase = self.phase, phase
            result = work(*args, **keywords)
            self.phase = before
            return result

        return counted


def _launches(name: str, args: tuple[Any, ...]) -> int:
    lists = [
        value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor)
    ]
    if name.startswith("aten::_fused_adam"):
        return math.ceil(len(lists[0]) / ADAM_TENSORS_A_LAUNCH)
    if name.startswith("aten::_foreach_"):
        return math.ceil(len(lists[0]) / TENSORS_A_LAUNCH[min(4, len(lists))])
    if name in ("aten::cat", "aten::stack"):
        return math.ceil(len(lists[0]) / CAT_TENSORS_A_LAUNCH)
    return 2 if name in TWO else 1


def count(workload: Workload) -> dict[str, Counter[str]]:
    """Launches of a training step on a GPU, end to end, with clipping and EMA: phase → operation → launches."""
    truncated = workload.build()[1]
    named = truncated.named_global_parameters()
    average = Average(named, 0.999, {})
    average.update()
    optimizer = make_optimizer("adam", named, 1e-4, fused=True)
    step = EagerStep(truncated, Update(named, optimizer, 1e-4, clip=50.0, average=average), workload.pixels.dims)
    packet = workload.batches().recv()
    step.backward(step.forward(packet)[1])
    step.update()  # makes the moments
    launches = Launches()
    moved_average = average.update
    with (
        mock.patch.object(torch.Tensor, "is_cuda", True),
        mock.patch.object(average, "update", launches.during("EMA", moved_average)),
        launches,
    ):
        _, nll = launches.during("forward", step.forward)(packet)
        launches.during("backward", step.backward)(nll)
        launches.during("update", step.update)()
    return launches.counts


def main() -> None:
    args = make_parser(__doc__).parse_args()
    workload = Workload(levels=3, steps=2 if args.quick else 32, hidden=8, size=8, batch=2)
    found = {name: count(replace(workload, **options)) for name, options in SETTINGS.items()}
    rows = [
        {"setting": name, **{phase: sum(of.values()) for phase, of in counts.items()}} for name, counts in found.items()
    ]
    print(table(["", *PHASES, "together"], [[*row.values(), sum(list(row.values())[1:])] for row in rows]))
    for name, counts in found.items():
        most = sum(counts.values(), Counter()).most_common(12)
        print(f"{name}: {', '.join(f'{operation} {launches}' for operation, launches in most)}")
    keep("launches", {**about({"workload": asdict(workload)}), "rows": rows}, args)


if __name__ == "__main__":
    main()
