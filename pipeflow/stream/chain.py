"""Opens the links between parts: those of this process, to each other and to parts of other processes.

Training, evaluation, ActNorm's start and the check at the switch all send packets of some shape down the same chain.
They differ in what enters at the head and in what a process does with a packet, not in how the links are opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..distributed import WIRES, World, overlap
from ..flow import Event
from .links import Discard, DividedOutbox, Inbox, JoinedInbox, LocalLink, Outbox
from .process_links import Border, ProcessInbox, ProcessOutbox

Links = list[tuple[int, Inbox, Outbox]]
"""(position, inbox, outbox) of parts that one process holds, in order."""


def close(links: Links, early: bool = False) -> None:
    """Blocks until nothing is on its way in links that `Chain.open_links` opened.

    Args:
        links: what `open_links` returned.
        early: fewer packets were sent than the links were opened for.
    """
    for _, inbox, outbox in links:
        outbox.close(early)
        inbox.close(early)


@dataclass
class Chain:
    """The parts of a flow, one after another, over the processes that hold them.

    Attributes:
        world: the processes.
        events: shape of a latent after each part.
        digest: of the run's settings; both ends of every border must have the same.
        labels: whether packets have labels.
    """

    world: World
    events: list[Event]
    digest: str
    labels: bool = False

    def mine(self, last: int) -> list[int]:
        """Positions of this process's parts, none after `last`."""
        return [part for part in self.world.mine if part <= last]

    def open_links(
        self,
        head: Inbox,
        sizes: tuple[int, ...],
        count: int,
        last: int,
        done: Sequence[int] = (),
        wire: str = "fp32",
        shared: bool = True,
    ) -> Links:
        """Opens every link for `count` batches, each cut into packets, that go from part 0 to part `last`.

        Every process must call it. Both ends first compare what they are about to send and receive.

        Args:
            head: where part 0 takes its packets from, or its share of them.
            sizes: images per packet of this chain, for the packets of a batch in turn.
            count: batches; may differ from chain to chain, and be 0.
            last: position of the last part that takes part.
            done: how many of the batches each part has done already, in a chain that is opened again; none by default.
            wire: how latents cross a border, a key of `WIRES`.
            shared: the processes of a part share its packets; else the first takes them whole, and the others nothing.

        Returns:
            The links of the parts of this process that take part.

        Raises:
            ValueError: the processes disagree about the shapes or the settings.
        """
        images = " + ".join(map(str, sizes))
        what = f"{count} batches of {images} images ({wire}) to part {last + 1}, borders {self.events}"
        self.world.agree("the run", f"{what}, settings {self.digest}", by_chain=True)
        if not count or not self._share(self.world.rank, sizes[0], shared):
            return []
        done = done[: last + 1] or (0,) * (last + 1)
        # A part that is behind the others computes alone until it has caught up: what is due meanwhile is not late.
        timeout_s = self.world.config.timeout_s * (1 + max(done) - min(done))

        def borders(part: int, other: int, direction: str) -> tuple[list[Border], list[list[range]]]:
            """The ends of a border, one for each process on its other side, and which images pass there."""
            left = (count - done[max(part, other)]) * len(sizes)
            pieces = self._pieces(other, sizes, shared)
            return [
                self.border(part, other, direction, tuple(map(len, images)), left, timeout_s, WIRES[wire], rank)
                for rank, images in pieces.items()
            ], list(pieces.values())

        links: Links = []
        inbox: Inbox = head
        for part in self.mine(last):
            if part > 0 and self._crosses(part - 1):
                inboxes = [ProcessInbox(border) for border in borders(part, part - 1, "from")[0]]
                inbox = inboxes[0] if len(inboxes) == 1 else JoinedInbox(inboxes)
            outbox: Outbox = Discard()
            if part < last and self._crosses(part):
                ends, pieces = borders(part, part + 1, "to")
                outboxes = [ProcessOutbox(border) for border in ends]
                outbox = outboxes[0] if len(outboxes) == 1 else DividedOutbox(outboxes, pieces)
            elif part < last:
                outbox = LocalLink(WIRES[wire], len(sizes))
            links.append((part, inbox, outbox))
            if isinstance(outbox, LocalLink):
                inbox = outbox
        return links

    def border(
        self,
        part: int,
        other: int,
        direction: str,
        sizes: tuple[int, ...],
        count: int,
        timeout_s: float | None = None,
        wire: torch.dtype = torch.float32,
        rank: int | None = None,
    ) -> Border:
        """This process's end of the border between its part `part` and another process's part `other`.

        Args:
            part, other: neighbours.
            direction: "to" or "from" the other.
            sizes: images per packet, of one packet after another, again and again.
            count: packets.
            timeout_s: how long one that is due may take; `parallel.timeout_s` by default.
            wire: dtype of latents on their way.
            rank: of the other process; the first that holds `other` by default.
        """
        world = self.world
        peer = world.owner[other] if rank is None else rank
        return Border(
            name=f"part {part + 1} (rank {world.rank}), {direction} part {other + 1} (rank {peer})",
            group=world.edge(peer),
            peer=peer,
            event=self.events[min(part, other)],
            sizes=sizes,
            packets=count,
            depth=world.config.depth,
            timeout_s=timeout_s or world.config.timeout_s,
            device=world.device,
            staged=world.staged,
            pulse=world.pulse,
            wire=wire,
            labels=self.labels,
        )

    def _share(self, rank: int, images: int, shared: bool) -> range:
        """Which images of a packet a process takes; see `open_links` for `shared`."""
        if shared:
            return self.world.grid.share(rank, images)
        return range(images if rank in self.world.grid.owner(self.world.replica) else 0)

    def _pieces(self, other: int, sizes: tuple[int, ...], shared: bool) -> dict[int, list[range]]:
        """Rank of each process that holds part `other` → which images it takes of what this process takes of a packet.

        Those that take none are left out. All are in the order of the images, in which NCCL may have to connect them:
        an order that is the same for both sides of a border lets none wait for each other in a circle.
        """
        mine = [self._share(self.world.rank, size, shared) for size in sizes]
        found: dict[int, list[range]] = {}
        for rank in self.world.grid.holders(self.world.replica, other):
            theirs = [self._share(rank, size, shared) for size in sizes]
            if any(pieces := list(map(overlap, mine, theirs))):
                found[rank] = pieces
        return found

    def _crosses(self, border: int) -> bool:
        return self.world.owner[border] != self.world.owner[border + 1]
