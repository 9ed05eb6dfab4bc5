"""Quantities with units: what is read, and what is asked back."""

import pytest

from pipeflow.units import bits_per_second, bytes_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10Gb/s", 1e10),
        ("1.5 Mb/s", 1.5e6),
        ("100kb/s", 1e5),
        ("100Kb/s", 1e5),
        ("2Tb/s", 2e12),
        ("9b/s", 9),
        ("1e3b/s", 1e3),
    ],
)
def test_speeds(text, value):
    assert bits_per_second(text) == value


@pytest.mark.parametrize(("text", "value"), [("80GB", 8e10), ("16 GiB", 2**34), ("500MB", 5e8), ("1TiB", 2**40)])
def test_amounts(text, value):
    assert bytes_of(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "10", "fast", "10GB/s", "10 Gbit/s", "-1Gb/s", "0Gb/s", "1.2.3Gb/s", "1e999Gb/s", "nanGb/s", "Gb/s", "10gb/s"],
)
def test_what_is_no_speed(text):
    with pytest.raises(ValueError, match=r"is not a speed such as 10Gb/s"):
        bits_per_second(text)


@pytest.mark.parametrize("text", ["", "80", "80Gb", "0GB", "-2GB", "80 gb"])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match=r"is not an amount such as 80GB"):
        bytes_of(text)
