"""What a run will cost: measured once per kind of flow step, computed for every cut."""

from .balance import balanced_cut, resolve_cut
from .cluster import CLUSTER_OPTIONS, Cluster, elapsed
from .forecast import Forecast, compare
from .make_plan import make_plan
from .measure import measure_steps
from .micro_batches import with_chosen_micro_batches
from .placement import Placement, place_processes
from .plan import Plan
from .profile import Link, Profile
from .run_profile import flow_step_groups, measured_profile
from .scaling import Simulated, Simulation, limit
