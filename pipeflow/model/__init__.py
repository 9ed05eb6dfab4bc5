"""The flows, their cut into parts, and the objective that each part minimises."""

from .activations import NAMES, Activations, Compile, Drift, check_passage, make_passage
from .build import ModelSettings, build, build_parts, provisional_prior, steps_of
from .cut import CutConfig, HeadConfig, check_cut, cut_steps, flow_step_positions, flow_steps_behind, scheme_cut
from .families import FAMILIES, Family, family_caution, family_cut, family_steps
from .flow_model import Flow, Glow, LabelsLike, check_labels
from .glow import GlowConfig, glow_steps
from .jet import JetConfig
from .precision import Layout, Precision, set_packets, set_precision, set_tensor_cores
from .slot_names import SLOT, averaged, is_average
from .tarflow import TarFlowConfig
from .truncated import Truncated, bits_per_dim, global_state
from .user_flow import Maker, UserFlow, check_flow, check_name

__all__ = [
    "FAMILIES",
    "NAMES",
    "SLOT",
    "Activations",
    "Compile",
    "CutConfig",
    "Drift",
    "Family",
    "Flow",
    "Glow",
    "GlowConfig",
    "HeadConfig",
    "JetConfig",
    "LabelsLike",
    "Layout",
    "Maker",
    "ModelSettings",
    "Precision",
    "TarFlowConfig",
    "Truncated",
    "UserFlow",
    "averaged",
    "bits_per_dim",
    "build",
    "build_parts",
    "check_cut",
    "check_flow",
    "check_labels",
    "check_name",
    "check_passage",
    "cut_steps",
    "family_caution",
    "family_cut",
    "family_steps",
    "flow_step_positions",
    "flow_steps_behind",
    "global_state",
    "glow_steps",
    "is_average",
    "make_passage",
    "provisional_prior",
    "scheme_cut",
    "set_packets",
    "set_precision",
    "set_tensor_cores",
    "steps_of",
]
