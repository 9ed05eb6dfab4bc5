"""The mathematics: invertible steps and priors. Nothing here knows of parts, processes or data sets."""

from .actnorm import ActNorm
from .conv1x1 import LUConv1x1, PlainConv1x1
from .coupling import AdditiveCoupling, AffineCoupling
from .flow_prior import FlowPrior
from .packet import Packet
from .prior import ChannelGaussian, StandardNormal, make_prior
from .split import Split
from .squeeze import Squeeze
from .step import Event, Step

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "ChannelGaussian",
    "Event",
    "FlowPrior",
    "LUConv1x1",
    "Packet",
    "PlainConv1x1",
    "Split",
    "Squeeze",
    "StandardNormal",
    "Step",
    "make_prior",
]
