"""torchrun reads every word of a command, also those after the module: none of ours may be taken for one of its own.

argparse takes `--run` for `--run-path` wherever it stands, so a setting must not be the beginning of an option of
torchrun's.
"""

import re
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from pipeflow.config import describe

PACKAGE = Path(__file__).parents[2] / "pipeflow"
TORCHRUN = [option for action in get_args_parser()._actions for option in action.option_strings]


SETTINGS = {f"--{row.name}" for row in describe() if not row.name.startswith("phases.")} | {"--config", "--resume"}
COMMANDS = {  # every option that stands in the source
    option
    for path in PACKAGE.rglob("*.py")
    for option in re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8"))
}
OURS = sorted(
    (SETTINGS | COMMANDS) - {"--n", "--help"}
)  # torchrun has a --help of its own; --n is also called --images


def is_beginning(option):
    """Of one of torchrun's, with either kind of line between its words."""
    return any(other.replace("_", "-").startswith(option.replace("_", "-")) for other in TORCHRUN)


def test_all_options_are_found():
    assert is_beginning("--run") and is_beginning("--nproc_per-n") and is_beginning("--n")
    assert len(SETTINGS) > 40 and {"--temperature", "--images", "--link", "--out"} <= COMMANDS


@pytest.mark.parametrize("option", OURS)
def test_torchrun_leaves_it_alone(option):
    assert not is_beginning(option)
    for words in ([option, "7"], [f"{option}=7"]):
        parsed = get_args_parser().parse_args(["--nproc_per_node=2", "-m", "pipeflow.train", *words])
        assert parsed.training_script_args == words
