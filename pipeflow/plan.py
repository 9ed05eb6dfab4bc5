"""python -m pipeflow.plan: measures each flow step on this device and forecasts what a run will cost and do."""

import sys
from collections.abc import Sequence

from .cli import Options, print_error, words
from .config import parse_resume
from .distributed import choose_device, prepare_process
from .planning import CLUSTER_OPTIONS
from .reporting import report_plan
from .units import bits_per_second, bytes_of


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 2 where something is for the user to put right."""
    parser = Options("pipeflow.plan", "Forecasts what a run costs. Takes every setting of pipeflow.train as well.")
    add = parser.add_argument
    add("--link", type=bits_per_second, default=1e10, metavar="SPEED", help="between two devices; 10Gb/s")
    add("--memory", type=bytes_of, metavar="AMOUNT", help="of a device, such as 80GB; that of this one")
    add("--hosts", type=int, metavar="N", help="shows which process sits where, with --gpus-per-host")
    add("--gpus-per-host", type=int, metavar="N", help="one process each")
    for name, (kind, metavar, text) in CLUSTER_OPTIONS.items():
        add(name, type=kind, metavar=metavar, help=text)
    add("--out", metavar="DIR", help="for plan.json and plan.png; the run directory if not given")
    try:
        options, settings = parser.parse_known_args(words(arguments))
        config, resume = parse_resume(settings)
        if resume is not None:
            raise ValueError("--resume is an option of pipeflow.train; a plan needs the settings alone.")
        prepare_process(config.parallel.threads, choose_device(config.device))
        print(report_plan(config, **vars(options)))
    except ValueError as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
