"""Settings as the command line gives them."""

from collections.abc import Sequence

from pipeflow.config import Config, parse_resume


def parse(arguments: Sequence[str]) -> Config:
    """Command line, such as ["--glow.levels", "2"] → settings."""
    return parse_resume(arguments)[0]
