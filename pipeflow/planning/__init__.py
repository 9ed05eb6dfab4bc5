"""What a run will cost: measured once per kind of flow step, computed for every cut."""

from .balance import balanced_cut, resolve_cut
from .cautions import cautions
from .forecast import Forecast, compare
from .link import Link
from .make_plan import PlanOptions, make_plan
from .measure import measure_steps
from .placement import Placement, place_processes
from .plan import Plan
from .profile import Profile
from .run_profile import measured_profile
from .saved_plan import MADE_BY, as_json

__all__ = [
    "MADE_BY",
    "Forecast",
    "Link",
    "Placement",
    "Plan",
    "PlanOptions",
    "Profile",
    "as_json",
    "balanced_cut",
    "cautions",
    "compare",
    "make_plan",
    "measure_steps",
    "measured_profile",
    "place_processes",
    "resolve_cut",
]
