"""Small rooms: how long modules and commands may be."""

import pytest

from tests.laws.test_architecture import FILES

LINES = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}


@pytest.mark.parametrize("file", LINES)
def test_a_module_has_at_most_250_lines(file):
    assert LINES[file] <= 250


@pytest.mark.parametrize("command", ["train", "plan", "evaluate", "sample", "report"])
def test_a_command_has_at_most_40_lines(command):
    assert LINES[f"{command}.py"] <= 40
