"""A plan in its directory: `plan.json` and `plan.png`, which another plan may replace and nothing else may."""

import json
from pathlib import Path

from ..config import Config
from ..planning import Plan, PlanOptions, make_plan
from ..storage import write_whole
from .drawing import PLAN_MAKER
from .plan_chart import chart
from .plan_tables import tables


def report_plan(config: Config, options: PlanOptions, out: str | None = None) -> str:
    """Makes a plan, and writes plan.json and plan.png; a plan that is there is made anew.

    Args:
        config: the settings of the run.
        options: what to plan for.
        out: directory of the two files; the run directory by default.

    Returns:
        The plan as tables, and where the files are.

    Raises:
        ValueError: settings that `train` would refuse, or a directory that cannot be written; nothing was written.
    """
    directory = Path(out or config.run_dir)
    _check_directory(directory, "--out" if out else "--run_dir")
    plan = make_plan(config, options)
    _write(directory, plan)
    return f"{tables(plan)}\n\n{directory}: plan.json and plan.png are there."


def _check_directory(directory: Path, option: str) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{option} {directory} is a file; it must be a directory, or not exist yet.")
    for file in (directory / "plan.json", directory / "plan.png"):
        if file.exists() and PLAN_MAKER.encode() not in file.read_bytes():
            raise ValueError(f"{file} is no plan, and is not written over; give another --out.")


def _write(directory: Path, plan: Plan) -> None:
    text, picture = json.dumps({"made_by": PLAN_MAKER, **plan.as_dict()}, indent=1), chart(plan)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / "plan.png", picture)
        write_whole(directory / "plan.json", text + "\n")
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be written ({error.strerror}); give another --out.") from error
