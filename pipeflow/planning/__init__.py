"""What a run will cost: measured once per kind of flow step, computed for every cut."""

from .balance import balanced_cut, flow_step_costs, measure_steps
from .forecast import Forecast, Link, compare
from .placement import Placement, place
from .plan import Outlook, Setting, as_json, look
from .profile import Profile
from .saved_plan import FILE, FORMAT, capacity, device_name, read_plan, subject
from .survey import events_behind, survey

__all__ = [
    "FILE",
    "FORMAT",
    "Forecast",
    "Link",
    "Outlook",
    "Placement",
    "Profile",
    "Setting",
    "as_json",
    "balanced_cut",
    "capacity",
    "compare",
    "device_name",
    "events_behind",
    "flow_step_costs",
    "look",
    "measure_steps",
    "place",
    "read_plan",
    "subject",
    "survey",
]
