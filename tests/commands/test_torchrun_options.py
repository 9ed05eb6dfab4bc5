"""torchrun reads every word of a command, also those after the module: none of ours may be taken for one of its own.

argparse takes `--run` for `--run-path` wherever it stands, so a setting must not be the beginning of an option of
torchrun's.
"""

import re
from argparse import ArgumentParser
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from pipeflow.config import describe
from pipeflow.inference import add_sampling_options, add_scoring_options

PACKAGE = Path(__file__).parents[2] / "pipeflow"
TORCHRUN = [option for action in get_args_parser()._actions for option in action.option_strings]


def options_of(module):
    """The options that a command adds, read from its source."""
    return re.findall(r'add_argument\(\s*"(--[\w-]+)"', (PACKAGE / module).read_text(encoding="utf-8"))


def options_by(add):
    """The options that a function adds to a parser, without their other names."""
    parser = ArgumentParser(add_help=False)
    add(parser)
    return [action.option_strings[0] for action in parser._actions if action.option_strings]


OURS = {
    "train.py": [
        *(f"--{row.name}" for row in describe() if not row.name.startswith("phases.")),
        "--config",
        "--resume",
    ],
    "evaluate.py": options_by(add_scoring_options),
    "sample.py": options_by(add_sampling_options),
    **{module: options_of(module) for module in ("plan.py", "report.py")},
}
ALL = [(module, option) for module, options in OURS.items() for option in options]


def is_beginning(option):
    """Of one of torchrun's, with either kind of line between its words."""
    return any(other.replace("_", "-").startswith(option.replace("_", "-")) for other in TORCHRUN)


def test_all_options_are_found():
    assert is_beginning("--run") and is_beginning("--nproc_per-n") and len(OURS["train.py"]) > 40
    assert all(OURS[module] for module in ("evaluate.py", "sample.py"))


@pytest.mark.parametrize(("module", "option"), ALL)
def test_torchrun_leaves_it_alone(module, option):
    assert not is_beginning(option)
    for words in ([option, "7"], [f"{option}=7"]):
        parsed = get_args_parser().parse_args(["--nproc_per_node=2", "-m", f"pipeflow.{module[:-3]}", *words])
        assert parsed.training_script_args == words
