"""Settings of the processes: how parts are spread over them, and how they reach each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch

from ..settings import AtLeast0, AtLeast1, NotNegative, Positive, settings
from ..units import bytes_of


@settings("parallel")
@dataclass(frozen=True)
class ParallelConfig:
    """How parts are spread over processes.

    Attributes:
        backend: of the links and of DDP, in all processes; "auto" takes NCCL if each has a GPU of its own, else gloo.
        depth: packets in flight over a border before the sender waits.
        micro_batches: packets per batch. Each goes forward, is sent on and goes backward before the next, and a part
            updates after the last, so that its activations take the memory of one packet. Sizes differ by at most one
            image. An end-to-end pipeline has `end_to_end.micro_batches` instead. "auto" takes the fewest that fit into
            the memory of every process; decided once, when the run begins.
        memory: of a process's device, such as "80GB", for `auto` and for plans; None takes what is free there, on the
            CPU an equal share of it for each process of the host.
        threads: intra-op threads per part on the CPU; the same however many processes there are.
        replicas: chains of parts side by side, each on its own share of every batch; None takes as many as the
            processes make. A list, one number per part, gives each part so many processes, which share its packets.
        timeout_s: seconds to wait for a packet (or an all-reduce) that is due.
        heartbeat_s: seconds between two signs of life; a process that misses five counts as lost.
        rejoin_s: seconds that the others wait, while training by parts, for a lost process to come back; 0 ends the
            run.
        restarts: how often a process that dies is started again, by a process beside it that has imported everything
            and waits: alone, where `rejoin_s` lets the others wait, else with all others; torchrun does the same with
            `--max-restarts`, but has to start Python and import PyTorch each time.
        wire: how a latent crosses a border while training by parts: "bf16" rounds it and halves the bytes; what is
            evaluated, sampled or trained end to end is never rounded.
    """

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    depth: AtLeast1 = 2
    micro_batches: AtLeast1 | Literal["auto"] = 1
    memory: str | None = None
    threads: AtLeast1 = 1
    replicas: AtLeast1 | list[AtLeast1] | None = None
    timeout_s: Positive = 600.0
    heartbeat_s: Positive = 3.0
    rejoin_s: NotNegative = 0.0
    restarts: AtLeast0 = 0
    wire: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.memory is not None:
            try:
                bytes_of(self.memory)
            except ValueError as error:
                raise ValueError(f"parallel.memory: {error}") from None

    @property
    def packets(self) -> int:
        """Packets per batch; 1 as long as `auto` has not been decided."""
        return 1 if self.micro_batches == "auto" else self.micro_batches

    def bytes_per_image(self, event: Sequence[int], labels: bool = False) -> int:
        """Bytes that one image takes over a border while training by parts, if its latent has the shape `event`."""
        return bytes_per_image(event, WIRES[self.wire], labels)


WIRES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bytes_per_image(event: Sequence[int], wire: torch.dtype, labels: bool = False) -> int:
    """Bytes of one image in a packet: its latent of the shape `event` as `wire`, log-likelihood (float32), label."""
    return prod(event) * wire.itemsize + torch.float32.itemsize + labels * torch.int64.itemsize
