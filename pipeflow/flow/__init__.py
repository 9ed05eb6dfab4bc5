"""The mathematics: invertible steps and priors. Nothing here knows of parts, processes or data sets."""

from .actnorm import ActNorm
from .chain import added, advance, for_each, invert, prepare, prepare_inverse, stacked
from .conv1x1 import LUConv1x1, PlainConv1x1, at_every_pixel, inverses
from .coupling import AdditiveCoupling, AffineCoupling
from .flow_prior import FlowPrior
from .fused import mix, on_gpu
from .packet import Packet
from .prior import ChannelGaussian, StandardNormal, make_prior
from .split import Split
from .squeeze import Squeeze
from .step import BatchedStep, Event, Step, Weights

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "BatchedStep",
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
    "Weights",
    "added",
    "advance",
    "at_every_pixel",
    "for_each",
    "inverses",
    "invert",
    "make_prior",
    "mix",
    "on_gpu",
    "prepare",
    "prepare_inverse",
    "stacked",
]
