"""By parts, and what people would use instead: one process, DDP, FSDP, the schedules of `torch.distributed.pipelining`.

All of them take the same parts of the same flow, the same images per optimizer step, the same Adam and, except one
process, the same processes. Between the pipeline's stages travel (z, logp), as between parts; its loss is the last
part's. Each approach runs a number of steps and says how long this process computed in them; the rest of the time it
waited or communicated. tests/benchmarks/test_approaches.py compares the gradients of each with those of one process.
"""

import os
import time
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble

from benchmarks.lib.workload import Repeated, Workload
from pipeflow.data import MicroBatches, packet_sizes
from pipeflow.distributed import World, shard
from pipeflow.distributed.pipeline_1f1b import timed_stage
from pipeflow.flow import Packet
from pipeflow.model import Truncated, bits_per_dim, set_packets
from pipeflow.stage import PipelineModule, make_optimizer
from pipeflow.stream import Discard, close

NAMES = {
    "parts": "by parts",
    "1f1b": "1F1B",
    "gpipe": "GPipe",
    "zero_bubble": "zero bubble",
    "ddp": "DDP",
    "fsdp": "FSDP",
    "one": "one process",
    "one_all": "one process, all cores",
}
SCHEDULES: dict[str, Any] = {
    "1f1b": Schedule1F1B,
    "gpipe": ScheduleGPipe,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}


class Approach:
    """One way to train, in this process.

    Attributes:
        spent: seconds of this process since `begin` that went into "compute", "wait" (for a packet) and "send".
        warm, after: steps before and after those that are measured.
        clock_rank: rank of the process whose clock counts.
    """

    warm, after = 1, 0

    def __init__(self, workload: Workload, world: World) -> None:
        self.workload, self.world = workload, world
        self.spent = dict.fromkeys(("compute", "wait", "send"), 0.0)
        self.clock_rank = world.size - 1

    def begin(self, steps: int) -> None:
        """Prepares so many steps; all processes call it."""
        self.spent = dict.fromkeys(self.spent, 0.0)

    def step(self) -> None:
        """One batch, one update."""
        raise NotImplementedError

    def end(self) -> None:
        """Waits until nothing is on its way."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that this process trains, by global name."""
        raise NotImplementedError


class ByParts(Approach):
    """pipeflow's stages and links, as a run uses them. While the chain fills and drains nothing is measured.

    Args:
        wire: how latents travel.
        micro: packets per batch.
        prior: behind every part but the last, "standard" or "flow".
    """

    warm, after = 3, 3

    def __init__(
        self,
        workload: Workload,
        world: World,
        wire: str = "fp32",
        micro: int = 1,
        prior: Literal["standard", "flow"] = "standard",
    ) -> None:
        workload = replace(workload, provisional_prior=prior)
        super().__init__(workload, world)
        self._wire, self._sizes = wire, packet_sizes(workload.batch, micro)
        parts, _ = workload.build()
        self._chain = workload.chain(world, parts)
        self._stages = {part: workload.stage(parts[part], sizes=self._sizes) for part in world.mine}
        self._head: Any = MicroBatches(workload.batches(), self._sizes)

    def begin(self, steps: int) -> None:
        super().begin(steps)
        last = len(self._chain.events) - 1
        self._ends = self._chain.open_links(self._head, self._sizes, steps, last, wire=self._wire)
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
    """A part as it would run if every packet were there already and no neighbour had to take its latents.

    Args:
        rank: of the one process that works while the others do nothing; None if all of them work.
    """

    def __init__(self, workload: Workload, world: World, rank: int | None) -> None:
        super().__init__(workload, world)
        self._works = rank in (None, world.rank)
        self.clock_rank = self.clock_rank if rank is None else rank

    def begin(self, steps: int) -> None:
        Approach.begin(self, steps)
        self._ends = []
        if not self._works:
            return
        for part, stage in self._stages.items():
            event = self._chain.events[part - 1] if part else ()
            packet = Packet(torch.randn(self.workload.batch, *event), torch.zeros(self.workload.batch))
            inbox = Repeated(packet) if part else self._head
            stage.connect(inbox, Discard())
            self._ends.append((part, inbox, Discard()))


class TorchPipeline(Approach):
    """A schedule of PyTorch's own pipeline engine, one stage per process.

    Args:
        schedule: of `torch.distributed.pipelining`.
        micro: micro-batches per batch.
        group: of all processes, for this engine alone.
    """

    def __init__(self, workload: Workload, world: World, schedule: Any, micro: int, group: Any) -> None:
        super().__init__(workload, world)
        assert workload.batch % micro == 0, (workload.batch, micro)
        self._truncated = workload.build()[0][world.rank]
        set_packets(self._truncated, micro)
        self._last = world.rank == world.size - 1
        shapes = (self._truncated.part.event_in, self._truncated.part.event_out)
        module, position = PipelineModule([self._truncated], self._last), (world.rank, world.size)
        stage = timed_stage(module, self._last, position, shapes, workload.batch // micro, world.device, group)
        dims = workload.pixels.dims

        def loss(nll: Tensor, target: Tensor) -> Tensor:
            return bits_per_dim(nll, dims).mean()

        several = schedule is ScheduleInterleavedZeroBubble
        self._schedule = schedule([stage] if several else stage, n_microbatches=micro, loss_fn=loss)
        self._stage = stage
        self._optimizer = make_optimizer("adam", self._truncated.named_global_parameters(), workload.lr)
        self._head = workload.batches()
        self._target = torch.zeros(workload.batch)

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


class SharedBatch(Approach):
    """The whole flow in every process, each of which takes its share of the batch; how it is spread, subclasses say."""

    def __init__(self, workload: Workload, world: World) -> None:
        super().__init__(workload, world)
        assert workload.batch % world.size == 0, (workload.batch, world.size)
        self._flow = workload.build()[1]
        self._model = self.spread(self._flow)
        self._optimizer = make_optimizer("adam", self._flow.named_global_parameters(), workload.lr)
        self._head = workload.batches((world.rank, world.size))

    def spread(self, flow: Truncated) -> nn.Module:
        """What is called in place of the flow, and averages its gradients over all processes."""
        raise NotImplementedError

    def step(self) -> None:
        self._optimizer.zero_grad()
        _, nll = self._model(self._head.recv())
        bits_per_dim(nll, self.workload.pixels.dims).mean().backward()
        self._optimizer.step()

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._flow.named_global_parameters())


class DataParallel(SharedBatch):
    """All weights in every process, gradients averaged by DistributedDataParallel.

    Args:
        group: of all processes, for DDP alone.
        bucket_mb: size of a gradient bucket.
    """

    def __init__(self, workload: Workload, world: World, group: Any, bucket_mb: float) -> None:
        self._group, self._bucket_mb = group, bucket_mb
        super().__init__(workload, world)

    def spread(self, flow: Truncated) -> nn.Module:
        return nn.parallel.DistributedDataParallel(
            flow,
            process_group=self._group,
            broadcast_buffers=False,
            bucket_cap_mb=self._bucket_mb,
            gradient_as_bucket_view=True,
        )


class Sharded(SharedBatch):
    """Weights, gradients and moments spread over all processes (FSDP), gathered flow step by flow step."""

    def spread(self, flow: Truncated) -> nn.Module:
        shard(self.world, flow, [step for _, step in flow.part.chain() if step.place == "step"])
        return flow


class OneProcess(Approach):
    """The whole model in the first process, the whole batch; the other processes do nothing.

    Args:
        threads: that it computes with.
    """

    def __init__(self, workload: Workload, world: World, threads: int) -> None:
        super().__init__(workload, world)
        self._threads, self.clock_rank = threads, 0
        if world.rank == 0:
            self._stage = workload.stage(workload.build()[1])
            self._stage.connect(workload.batches(), Discard())

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


def make_approach(
    name: str, workload: Workload, world: World, groups: dict[str, Any], setting: dict[str, Any]
) -> Approach:
    """An approach by its name; all processes call it, in the same order.

    Args:
        name: a key of NAMES, or "part_alone".
        workload: what to train.
        world: the processes.
        groups: of all processes, one for the pipelines and one for DDP; filled on first use.
        setting: `wire` and `prior` by parts, `micro` by parts and of a pipeline, `bucket_mb` of DDP, `threads` of one
            process, `rank` of a part alone.
    """
    if name == "parts":
        return ByParts(workload, world, **setting)
    if name == "part_alone":
        return PartAlone(workload, world, **setting)
    if name in ("one", "one_all"):
        return OneProcess(workload, world, **setting)
    if name == "fsdp":
        return Sharded(workload, world)
    kind = "ddp" if name == "ddp" else "pipeline"
    if kind not in groups:
        groups[kind] = dist.new_group(list(range(world.size)), backend="gloo")
    if name == "ddp":
        return DataParallel(workload, world, groups[kind], **setting)
    return TorchPipeline(workload, world, SCHEDULES[name], group=groups[kind], **setting)


def candidate_settings(name: str, batch: int, processes: int, quick: bool = False) -> list[dict[str, Any]]:
    """The settings that an approach is tried with; the best of them counts."""
    if name in SCHEDULES:
        micros = [m for m in ((2, 4) if quick else (1, 2, 4, 8)) if batch % m == 0]
        return [{"micro": m} for m in micros if name == "gpipe" or m >= processes]
    if name == "ddp":
        return [{"bucket_mb": size} for size in ((25,) if quick else (1, 25))]
    if name in ("one", "one_all"):
        return [{"threads": 1 if name == "one" else os.cpu_count()}]
    return [{}]
