"""The mathematics: invertible steps and priors. Nothing here knows of parts, processes or data sets."""

from .actnorm import ActNorm
from .conv1x1 import LUConv1x1, PlainConv1x1
from .coupling import AdditiveCoupling, AffineCoupling
from .flow_prior import FlowPrior
from .jet import SPATIAL, JetCoupling, channel_order, spatial_order
from .packet import Packet
from .patches import Patches
from .prior import ChannelGaussian, StandardNormal, make_prior
from .split import Split
from .squeeze import Squeeze
from .step import Event, Step
from .tarflow import TarFlowBlock
from .transformer import Transformer

__all__ = [
    "SPATIAL",
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "ChannelGaussian",
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
    "channel_order",
    "make_prior",
    "spatial_order",
]
