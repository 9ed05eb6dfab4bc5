"""Seconds and bytes, for people."""

_TIMES = (("ms", 1e-3, 1.0), ("s", 1.0, 180.0), ("min", 60.0, 10800.0), ("h", 3600.0, float("inf")))
_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0))


def duration(seconds: float) -> str:
    """Seconds as milliseconds, seconds, minutes or hours."""
    unit, size = time_unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def amount(size: float) -> str:
    """Bytes with the unit that fits."""
    unit, divisor = byte_unit(size)
    return f"{size / divisor:.4g} {unit}"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which to say so many seconds, and how many seconds it has."""
    return next((unit, size) for unit, size, most in _TIMES if seconds < most)


def byte_unit(size: float) -> tuple[str, float]:
    """The unit in which to say so many bytes, and how many bytes it has."""
    return next((unit, divisor) for unit, divisor in _BYTES if size >= divisor or divisor == 1)
