"""By parts, and what people would use instead: one process, DDP, and the schedules of `torch.distributed.pipelining`.

All of them take the same slices of the same flow, the same images an optimizer step, the same Adam and, but for `one`,
the same processes. Between the pipeline's stages travel (z, logp), as between parts; its loss is the last part's.
Each contestant runs a number of steps and says how long this process computed in them; the rest of the time it waited
or communicated. tests/test_rivals.py holds every one of them to the gradients of one process.
"""

import os
import time
from typing import Any

import torch
import torch.distributed as dist
from course import Again, Course
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble

from pipeflow.distributed import World
from pipeflow.distributed.pipeline_1f1b import timed_stage
from pipeflow.flow import Packet
from pipeflow.model import Truncated, bits_per_dim
from pipeflow.stage import PipelineModule, Stage, Update, make_optimizer
from pipeflow.stream import Discard, close

NAMES = {
    "parts": "by parts",
    "1f1b": "1F1B",
    "gpipe": "GPipe",
    "zero_bubble": "zero bubble",
    "ddp": "DDP",
    "one": "one process",
    "one_all": "one process, all cores",
}
SCHEDULES: dict[str, Any] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class Contestant:
    """One way to train, in this process.

    Attributes:
        spent: seconds in this process since `begin`: "compute", "wait" (for a packet) and "send" (handing one on).
        warm, after: steps before and behind those that are measured.
        clock: rank of the process whose clock counts.
    """

    warm, after = 1, 0

    def __init__(self, course: Course, world: World) -> None:
        self.course, self.world = course, world
        self.spent = dict.fromkeys(("compute", "wait", "send"), 0.0)
        self.clock = world.size - 1

    def begin(self, steps: int) -> None:
        """Makes ready for so many steps; all processes call it."""
        self.spent = dict.fromkeys(self.spent, 0.0)

    def step(self) -> None:
        """One batch, one update."""
        raise NotImplementedError

    def end(self) -> None:
        """Waits until nothing is on its way."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that this process trains, by global name."""
        raise NotImplementedError


class ByParts(Contestant):
    """pipeflow's own stages and links, as `Phase` uses them. While the stream fills and drains nothing is measured.

    Args:
        wire: how latents travel.
    """

    warm, after = 3, 3

    def __init__(self, course: Course, world: World, wire: str = "fp32") -> None:
        super().__init__(course, world)
        self._wire = wire
        slices, _ = course.build()
        self._chain = course.chain(world, slices)
        self._stages = {part: make_stage(course, slices[part]) for part in world.mine}
        self._head = course.head()

    def begin(self, steps: int) -> None:
        super().begin(steps)
        last = len(self._chain.events) - 1
        self._ends = self._chain.lay(self._head, self.course.batch, steps, last, wire=self._wire)
        for part, inbox, outbox in self._ends:
            self._stages[part].connect(inbox, outbox)

    def step(self) -> None:
        for part, _, _ in self._ends:
            report = self._stages[part].tick()
            self.spent["compute"] += report.compute_s
            self.spent["wait"] += report.wait_s
            self.spent["send"] += report.send_s

    def end(self) -> None:
        close(self._ends)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for stage in self._stages.values() for name, parameter in stage.update.named}


class PartAlone(ByParts):
    """A part as it would run if every packet were there already and nobody had to take its own.

    Args:
        rank: of the one process that works while the others do nothing; None if all of them work.
    """

    def __init__(self, course: Course, world: World, rank: int | None) -> None:
        super().__init__(course, world)
        self._works = rank in (None, world.rank)
        self.clock = self.clock if rank is None else rank

    def begin(self, steps: int) -> None:
        Contestant.begin(self, steps)
        self._ends = []
        if not self._works:
            return
        for part, stage in self._stages.items():
            event = self._chain.events[part - 1] if part else ()
            packet = Packet(torch.randn(self.course.batch, *event), torch.zeros(self.course.batch))
            inbox = Again(packet) if part else self._head
            stage.connect(inbox, Discard())
            self._ends.append((part, inbox, Discard()))


class Engine(Contestant):
    """A schedule of PyTorch's own pipeline engine, one stage a process.

    Args:
        schedule: of `torch.distributed.pipelining`.
        micro: micro-batches a batch.
        group: of all processes, for the engine alone.
    """

    def __init__(self, course: Course, world: World, schedule: Any, micro: int, group: Any) -> None:
        super().__init__(course, world)
        assert course.batch % micro == 0, (course.batch, micro)
        self._truncated = course.build()[0][world.rank]
        self._last = world.rank == world.size - 1
        around = (self._truncated.part.event_in, self._truncated.part.event_out)
        module, place = PipelineModule([self._truncated], self._last), (world.rank, world.size)
        stage = timed_stage(module, self._last, place, around, course.batch // micro, world.device, group)
        dims = course.pixels.dims

        def loss(nll: Tensor, target: Tensor) -> Tensor:
            return bits_per_dim(nll, dims).mean()

        several = schedule is ScheduleInterleavedZeroBubble
        self._schedule = schedule([stage] if several else stage, n_microbatches=micro, loss_fn=loss)
        self._stage = stage
        self._optimizer = make_optimizer("adam", self._truncated.named_global_parameters(), course.lr)
        self._head = course.head()
        self._target = torch.zeros(course.batch)

    def step(self) -> None:
        self._optimizer.zero_grad()
        before, start = self._stage.seconds, time.perf_counter()
        given = self._head.recv() if self.world.rank == 0 else ()
        self.spent["compute"] += time.perf_counter() - start
        self._schedule.step(*given, **({"target": self._target} if self._last else {}))
        self.spent["compute"] += self._stage.seconds - before
        start = time.perf_counter()
        self._optimizer.step()
        self.spent["compute"] += time.perf_counter() - start

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._truncated.named_global_parameters())


class Replicated(Contestant):
    """The whole model in every process under DistributedDataParallel; each takes its share of the batch.

    Args:
        group: of all processes, for DDP alone.
        bucket_mb: size of a gradient bucket.
    """

    def __init__(self, course: Course, world: World, group: Any, bucket_mb: float) -> None:
        super().__init__(course, world)
        assert course.batch % world.size == 0, (course.batch, world.size)
        self._whole = course.build()[1]
        self._model = nn.parallel.DistributedDataParallel(
            self._whole,
            process_group=group,
            broadcast_buffers=False,
            bucket_cap_mb=bucket_mb,
            gradient_as_bucket_view=True,
        )
        self._optimizer = make_optimizer("adam", self._whole.named_global_parameters(), course.lr)
        self._head = course.head((world.rank, world.size))

    def step(self) -> None:
        self._optimizer.zero_grad()
        _, nll = self._model(self._head.recv())
        bits_per_dim(nll, self.course.pixels.dims).mean().backward()
        self._optimizer.step()

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._whole.named_global_parameters())


class Alone(Contestant):
    """The whole model in the first process, the whole batch; the other processes do nothing.

    Args:
        threads: that it computes with.
    """

    def __init__(self, course: Course, world: World, threads: int) -> None:
        super().__init__(course, world)
        self._threads, self.clock = threads, 0
        if world.rank == 0:
            self._stage = make_stage(course, course.build()[1])
            self._stage.connect(course.head(), Discard())

    def begin(self, steps: int) -> None:
        super().begin(steps)
        if self.world.rank == 0:
            torch.set_num_threads(self._threads)

    def step(self) -> None:
        if self.world.rank == 0:
            self.spent["compute"] += self._stage.tick().compute_s

    def end(self) -> None:
        torch.set_num_threads(self.world.config.threads)

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._stage.update.named) if self.world.rank == 0 else {}


def make_stage(course: Course, truncated: Truncated) -> Stage:
    named = truncated.named_global_parameters()
    return Stage(truncated, Update(named, make_optimizer("adam", named, course.lr), course.lr), course.pixels.dims)


def make(name: str, course: Course, world: World, groups: dict[str, Any], **setting: Any) -> Contestant:
    """A contestant by its name; all processes call it, in the same order.

    Args:
        name: a key of NAMES, or "part_alone".
        course: what to train.
        world: the processes.
        groups: of all processes, one for the engine and one for DDP; filled on first use.
        setting: `wire` by parts, `micro` of the engine's schedules, `bucket_mb` of DDP, `threads` of one process,
            `rank` of a part alone.
    """
    if name == "parts":
        return ByParts(course, world, **setting)
    if name == "part_alone":
        return PartAlone(course, world, setting["rank"])
    if name in ("one", "one_all"):
        return Alone(course, world, setting["threads"])
    kind = "ddp" if name == "ddp" else "engine"
    if kind not in groups:
        groups[kind] = dist.new_group(list(range(world.size)), backend="gloo")
    if name == "ddp":
        return Replicated(course, world, groups[kind], setting["bucket_mb"])
    schedule = ScheduleInterleavedZeroBubble if name == "zero_bubble" else SCHEDULES[name]
    return Engine(course, world, schedule, setting["micro"], groups[kind])


def settings(name: str, batch: int, processes: int, quick: bool = False) -> list[dict[str, Any]]:
    """The settings that a contestant is tried with; the best of them counts."""
    if name in ("1f1b", "gpipe", "zero_bubble"):
        micros = [m for m in ((2, 4) if quick else (1, 2, 4, 8)) if batch % m == 0]
        return [{"micro": m} for m in micros if name == "gpipe" or m >= processes]
    if name == "ddp":
        return [{"bucket_mb": size} for size in ((25,) if quick else (1, 25))]
    if name in ("one", "one_all"):
        return [{"threads": 1 if name == "one" else os.cpu_count()}]
    return [{}]
