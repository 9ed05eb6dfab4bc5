"""What heads of a Jet or a TarFlow cost: multiply-adds of the part that has most, with its head and without, counted.

    python -m benchmarks.learning.head_cost [--quick] [--json FILE]      (half a minute)

The models and heads of `benchmarks.learning.heads --data digits --flow jet|tarflow`, in three parts of equally many
couplings or blocks. Matrix products and attention of a forward pass count; a backward pass has twice as many.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.learning.heads import LARGER, Study
from benchmarks.learning.tasks import digits, layers, width
from benchmarks.lib.results import about, keep, make_parser, table
from pipeflow.config import parse_resume
from pipeflow.data import Pixels
from pipeflow.flow import Packet
from pipeflow.model import build

PARTS = 3
IMAGE = (1, 8, 8)
ARMS = ("like_1_half", *(arm for arm in LARGER if arm.startswith("like")))


@torch.no_grad()
def most(flow: str, arm: str) -> int:
    """Floating-point operations per image of the part that has most, its head included."""
    task, _ = digits(PARTS, flow=flow)
    recipe = Study({PARTS: task}, width("digits", flow, False), {"data": flow}, depth=layers(flow)).recipe(
        PARTS, arm, {}
    )
    assert recipe
    config, _ = parse_resume([*task.words, *recipe.words])
    slices, _ = build(config.model, Pixels(IMAGE))
    packet, found = Packet(torch.zeros(1, *IMAGE), torch.zeros(1)), []
    for part in sorted(slices):
        with FlopCounterMode(display=False) as counter:
            packet, _ = slices[part](packet)
        found.append(counter.get_total_flops())
    return max(found)


def main() -> None:
    args = make_parser(__doc__).parse_args()
    arms = ARMS[:2] if args.quick else ARMS
    ratios = {arm: {flow: most(flow, arm) / most(flow, "by_parts") for flow in ("jet", "tarflow")} for arm in arms}
    print(table(["head", "Jet", "TarFlow"], [[arm, *row.values()] for arm, row in ratios.items()]))
    keep("head_cost", {**about({"parts": PARTS}), "ratios": ratios}, args)


if __name__ == "__main__":
    main()
