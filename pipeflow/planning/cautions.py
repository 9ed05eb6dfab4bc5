"""Sentences about a plan's run that tables and files of a plan end with."""

from ..model import family_caution
from .forecast import data_parallel
from .phase_forecast import pipeline
from .plan import Plan


def cautions(plan: Plan) -> list[str]:
    """Sentences about what `train` would refuse, what would not fit, and figures to doubt."""
    found = family_caution(plan.config.family, [*plan.at, len(plan.profile.steps)])
    if plan.busy > 0.1:
        found.append(
            f"Something else had the CPU for {100 * plan.busy:.0f} % of the time that measuring took; the seconds "
            "may be too many."
        )
    for processes in plan.processes.values():
        try:
            plan.config.check_world(processes.size, processes.replicas)
        except ValueError as error:
            found.append(str(error))
    if plan.config.compile == "part":
        found.append("Flow steps were measured one by one; what compiling a part as a whole saves is not counted.")
    over = [str(row.part) for row in plan.parts if not row.fits]
    if over:
        found.append(f"By parts, part {', '.join(over)} needs more memory than a device has.")
    if any(phase.schedule == "end_to_end" for phase in plan.config.phases):
        found += _too_large_end_to_end(plan)
    return list(dict.fromkeys(found))


def _too_large_end_to_end(plan: Plan) -> list[str]:
    """A sentence where a device has too little memory for its process end to end."""
    engine, batch = plan.config.end_to_end.engine, plan.config.data.batch
    processes = list(plan.processes.values())[:2][-1]
    if engine == "pipeline" and processes.stages > 1:
        found = pipeline(plan.profile, plan.at, plan.config.end_to_end, batch, plan.link, processes)
        sentence = "End to end a process of the pipeline needs more memory than a device has."
    elif engine == "fsdp" and processes.size > 1:
        return []  # each process holds a share of the model, of which nothing is forecast
    else:
        found = data_parallel(plan.profile, batch, processes.size, plan.link)
        sentence = "End to end every process holds the whole model, which needs more memory than a device has."
    return [] if plan.fits(found) else [sentence]
