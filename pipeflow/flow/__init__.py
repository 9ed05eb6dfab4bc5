"""The mathematics: invertible steps and priors. Nothing here knows of parts, processes or data sets."""

from .actnorm import ActNorm
from .conv1x1 import LUConv1x1, PlainConv1x1, at_every_pixel, inverses
from .coupling import AdditiveCoupling, AffineCoupling, CouplingNetwork
from .flow_prior import FlowPrior
from .fused import mix, on_gpu
from .jet import SPATIAL, JetCoupling, channel_order, spatial_order
from .packet import Packet
from .patches import Patches
from .prior import ChannelGaussian, StandardNormal, make_prior
from .split import Split
from .squeeze import Squeeze
from .step import BatchedStep, Event, Step, Weights
from .step_weights import Advance, added, advance, encode, for_each, invert, prepare, prepare_inverse, stacked
from .tarflow import TarFlowBlock
from .transformer import Transformer

__all__ = [
    "SPATIAL",
    "ActNorm",
    "AdditiveCoupling",
    "Advance",
    "AffineCoupling",
    "BatchedStep",
    "ChannelGaussian",
    "CouplingNetwork",
    "Event",
    "FlowPrior",
    "JetCoupling",
    "LUConv1x1",
    "Packet",
    "Patches",
    "PlainConv1x1",
    "Split",
    "Squeeze",
    "StandardNormal",
    "Step",
    "TarFlowBlock",
    "Transformer",
    "Weights",
    "added",
    "advance",
    "at_every_pixel",
    "channel_order",
    "encode",
    "for_each",
    "inverses",
    "invert",
    "make_prior",
    "mix",
    "on_gpu",
    "prepare",
    "prepare_inverse",
    "spatial_order",
    "stacked",
]
