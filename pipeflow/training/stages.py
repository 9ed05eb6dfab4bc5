"""Builds the stages of a phase: they go on from the moments and averages that the run has."""

from functools import partial

import torch

from ..config import PhaseConfig, Turn, lessons, micro_batches
from ..distributed import Engine, Members, average_gradients, others_answer
from ..flow import Packet
from ..model import Drift, Truncated, bits_per_dim, make_passage
from ..stage import (
    NORM,
    AdaptiveClip,
    Average,
    CudaRecorder,
    EagerStep,
    NamedParameters,
    PipelineModule,
    PipelineStage,
    RecordedStep,
    Stage,
    Update,
    load_moments,
    make_optimizer,
)
from .state import State


class StageBuilder:
    """Makes the stages of one phase.

    Args:
        state: the run.
        phase: learning rates, optimizer, clipping.
        plan: the phase's turns.
        begin: step of the run at which the phase begins.
    """

    def __init__(self, state: State, phase: PhaseConfig, plan: list[Turn], begin: int) -> None:
        self.state, self.phase, self.plan, self.begin = state, phase, plan, begin

    def stage(self, truncated: Truncated, position: int, sizes: tuple[int, ...]) -> Stage:
        """A part, or the whole model as one, in this process alone, for batches of packets of these sizes."""
        config = self.state.run.config
        drift = Drift() if config.activations == "invert" else None
        truncated.part.passage = make_passage(config.activations, config.compile, drift)
        update = self.update(truncated.named_global_parameters(), position)
        return Stage(truncated, update, self.state.run.space.dims, drift, sizes)

    def pipeline_stage(self) -> PipelineStage:
        """This process's parts, with those of the chain's other processes."""
        run, world = self.state.run, self.state.run.world
        slices = [self.state.weights.slices[part] for part in world.mine]
        for truncated in slices:
            truncated.part.passage = make_passage(run.config.activations, run.config.compile)
        module = PipelineModule(slices, slices[-1].prior_name == "prior")
        images = run.config.data.batch // world.grid.replicas
        pieces = micro_batches(run.config.end_to_end.micro_batches, images, world.grid.stages)
        loss = partial(bits_per_dim, dims=run.space.dims)
        engine = Engine(world, module, module.events, loss, images, pieces)
        update = self.update(module.named_global_parameters(), 0)
        if isinstance(clip := update.clip, AdaptiveClip):  # one mean, of the whole model's norms, by its first name
            clip.name, usual = world.broadcast([clip.name, clip.usual.item()])
            clip.usual.fill_(usual)
        return PipelineStage(engine, update)

    def update(self, named: NamedParameters, position: int) -> Update:
        """The optimizer of some parameters, with its moments, and their averages."""
        phase, weights = self.phase, self.state.weights
        lr = phase.lr_of(position)
        optimizer = make_optimizer(phase.optimizer, named, lr, phase.weight_decay)
        load_moments(optimizer, named, weights.moments)
        stale = {f"{NORM}/{name}" for name, _ in named[1:]}  # of a cut that was another
        weights.moments = {name: slot for name, slot in weights.moments.items() if name not in stale}
        clip = AdaptiveClip(named, weights.moments) if phase.clip == "adaptive" else phase.clip
        average = Average(named, self.state.run.config.ema, weights.averages)
        attempts = lessons(self.plan, position, self.state.progress.step - self.begin)
        return Update(named, optimizer, lr, phase.warmup_steps, clip, average, attempts)

    def averaged(self, stage: Stage, members: Members) -> Stage:
        """The stage, whose gradients DDP averages over these processes, where there are several.

        DDP lays out its buckets after its first backward pass, so one is thrown away: then every step of the run,
        resumed or not, adds its gradients up in the same order.
        """
        world, step = self.state.run.world, stage.step
        assert isinstance(step, EagerStep)
        if (wrapped := average_gradients(world, step.model, members)) is step.model:
            return stage
        step.model = wrapped
        z = torch.zeros(1, *stage.truncated.part.event_in, device=world.device)
        blank = Packet(z, z.new_zeros(1), z.new_zeros(1, dtype=torch.int64) if self.state.run.space.classes else None)
        with others_answer(world.pulse, "gradients were not averaged"):
            wrapped(blank)[1].mean().backward()
        stage.update.optimizer.zero_grad()
        return stage

    def replayed(self, stage: Stage, sharers: int) -> Stage:
        """The stage, whose kernels are replayed if that is asked for.

        Args:
            stage: that has not learned yet.
            sharers: processes that average its gradients; with more than one, kernels are started one by one.
        """
        if self.state.run.config.cuda_graphs and sharers == 1:
            config = self.state.run.config
            recorder = CudaRecorder(self.state.run.world.device)
            stage.step = RecordedStep(stage.step, stage.update.optimizer, recorder, config.parallel.packets)
        return stage
