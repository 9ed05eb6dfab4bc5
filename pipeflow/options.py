"""The command lines of the small commands: argparse, but what is wrong is a ValueError with a sentence.

`argparse` prints its usage and leaves the process; here every command says one line, and says it once.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn


class Options(argparse.ArgumentParser):
    """A parser of `python -m <prog>`.

    Args:
        prog: the module, such as "pipeflow.sample".
        description: for `--help`.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ").replace("unrecognized arguments:", "there is no option")
        raise ValueError(f"{text}; `python -m {self.prog} --help` lists the options.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Command line → options; a ValueError if it is wrong."""
        return self.parse_args([word for word in arguments if word != "--"])  # torchrun leaves words alone behind "--"
