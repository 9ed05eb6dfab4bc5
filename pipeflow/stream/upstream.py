"""Latents back up the chain, from the process that holds the last part to the one that holds the first.

Training sends packets down the chain and nothing back (chain.py). Sampling inverts the parts, the last one first, so
its latents take the same borders in the other direction, over the same kind of link: only neighbours talk, every
transfer has a deadline, and a neighbour that is gone is a `LostError` with its rank.
"""

from .chain import Chain
from .links import Border, Discard, Inbox, Outbox, ProcessInbox, ProcessOutbox


def upstream_links(chain: Chain, batch: int, count: int) -> tuple[Inbox | None, Outbox]:
    """Opens this process's links for `count` packets of `batch` latents; every process of the chain must call it.

    Args:
        chain: the parts, over the processes that hold them.
        batch: latents a packet; the log-likelihoods beside them are not used.
        count: packets, at least 1.

    Returns:
        The link from the process after this one, None where this one holds the last part and draws its latents itself;
        and the link to the process before it.
    """
    world = chain.world
    first, last = world.mine[0], world.mine[-1]

    def link(border: int, other: int, direction: str) -> Border:
        return Border(
            name=f"{world.place()}, {direction} {world.place(world.owner[other])}",
            group=world.edge(border),
            peer=world.owner[other],
            event=chain.events[border],
            batch=batch,
            packets=count,
            depth=world.config.depth,
            timeout_s=world.config.timeout_s,
            device=world.device,
            staged=world.staged,
            pulse=world.pulse,
        )

    inbox = ProcessInbox(link(last, last + 1, "from")) if last + 1 < len(chain.events) else None
    return inbox, Discard() if first == 0 else ProcessOutbox(link(first - 1, first - 1, "to"))
