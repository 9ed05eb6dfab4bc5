"""A clock that counts what operations are said to cost, so that a measured cut is the same on every machine."""

from collections import defaultdict

import torch

from pipeflow.data import Batches
from pipeflow.flow import StandardNormal
from pipeflow.model.glow import FlowStep
from pipeflow.stage import Average

FORWARD = {4: 1.0, 8: 0.2}  # seconds per image of a flow step, by the channels of its latents (digits in two levels)


class FakeClock:
    """Seconds that have been charged so far, and the rates at which operations are charged.

    Attributes:
        seconds: the time.
        rates: seconds by operation; those that are not named cost nothing. "bf16", "channels_last" and "compiled"
            multiply the time of flow steps with 4 channels; a backward pass takes twice the time of a forward pass.
    """

    def __init__(self, **rates):
        self.seconds, self.compiled = 0.0, False
        self.rates = defaultdict(float, {"bf16": 1.0, "channels_last": 1.0, "compiled": 1.0, **rates})

    def charge(self, seconds):
        self.seconds += seconds

    def install(self, replace=setattr):
        """Replaces the clock of measurements and charges for what is done; `replace` may be monkeypatch.setattr."""
        clock, rates = self, self.rates
        forward, inverse, at, log_prob = FlowStep.forward, FlowStep.inverse, Batches.at, StandardNormal.log_prob
        update, adam, adamax = Average.update, torch.optim.Adam.step, torch.optim.Adamax.step

        def flow_step(step, z, weights=None):
            seconds = FORWARD[z.shape[1]] * len(z)
            if z.shape[1] == 4:
                seconds *= rates["bf16"] if step.coupling.autocast else 1.0
                seconds *= rates["channels_last"] if step.coupling.channels_last else 1.0
                seconds *= rates["compiled"] if clock.compiled else 1.0
            else:
                seconds += rates["call"]
            clock.charge(seconds)
            out, dlogp = forward(step, z, weights)
            if out.requires_grad:
                out.register_hook(lambda _: clock.charge(2 * seconds))
            return out, dlogp

        def flow_step_inverse(step, z, eps=None, weights=None):
            clock.charge(rates["inverse"] * len(z) * (z.shape[1] == 8))
            return inverse(step, z, eps, weights)

        def prior(self, z, label=None):
            clock.charge(rates["prior"] * len(z) * (z.shape[1] == 4))
            return log_prob(self, z)

        def draw(batches, t, within=slice(None)):
            clock.charge(rates["draw"] * batches.batch)
            return at(batches, t, within)

        def average(self, changed=None):
            clock.charge(rates["ema"] if self.decay else 0.0)
            return update(self, changed)

        def optimizer(original, name):
            def step(self, closure=None):
                clock.charge(rates[name])
                return original(self, closure)

            return step

        def compiled(function, **options):
            def run(*arguments, **keywords):
                clock.compiled = True
                try:
                    return function(*arguments, **keywords)
                finally:
                    clock.compiled = False

            return run

        replace(FlowStep, "forward", flow_step)
        replace(FlowStep, "inverse", flow_step_inverse)
        replace(StandardNormal, "log_prob", prior)
        replace(Batches, "at", draw)
        replace(Average, "update", average)
        replace(torch.optim.Adam, "step", optimizer(adam, "adam"))
        replace(torch.optim.Adamax, "step", optimizer(adamax, "adamax"))
        replace(torch, "compile", compiled)
        from pipeflow.planning import measure

        replace(measure, "_MOST", 1)
        replace(measure, "now", lambda device: clock.seconds)
