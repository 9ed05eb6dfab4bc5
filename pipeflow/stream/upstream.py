"""Latents back up the chain, from the process that holds the last part to the one that holds the first.

Training sends packets down the chain and nothing back (chain.py). Sampling inverts the parts, the last one first, so
its latents take the same borders in the other direction, over the same kind of link: only neighbours talk, every
transfer has a deadline, and a neighbour that is gone is a `LostError` with its rank.
"""

from .chain import Chain
from .links import Discard, Inbox, Outbox
from .process_links import ProcessInbox, ProcessOutbox


def upstream_links(chain: Chain, batch: int, count: int) -> tuple[Inbox | None, Outbox]:
    """Opens this process's links for `count` packets of `batch` latents; every process of the chain must call it.

    Args:
        chain: the parts, over the processes that hold them.
        batch: latents per packet; the log-likelihoods beside them are not used.
        count: packets, at least 1.

    Returns:
        The link from the process after this one, None for the last; and the link to the process before it.
    """
    first, last = chain.world.mine[0], chain.world.mine[-1]
    inbox: Inbox | None = None
    if last < len(chain.events) - 1:
        inbox = ProcessInbox(chain.border(last, last + 1, "from", (batch,), count))
    return inbox, ProcessOutbox(chain.border(first, first - 1, "to", (batch,), count)) if first else Discard()
