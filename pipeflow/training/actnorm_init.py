"""ActNorm's data-dependent start: a part starts when it first learns, from the parts before it as they are then.

To start part 2 after a part 1 that has not learned would manufacture an instability. One packet of its own size goes
down the chain; each new part starts from it, and hands on what it has become. Every chain starts from the same images,
in each part's first process; its other replicas take what the first made of them: hosts of different make round
differently.
"""

import torch

from ..data import Batches, InOrder, Purpose
from ..distributed import equalise
from ..stream import close
from .state import State


def start(state: State, learners: tuple[int, ...]) -> None:
    """Starts those of the learning parts that never learned; every process must call it.

    Args:
        state: the run; a joined model is started whole, in every process from the same images.
        learners: positions of the parts that are about to learn.
    """
    new = set(learners) - state.progress.learned | _with_new_heads(state, learners)
    if not new:
        return
    run, weights, world = state.run, state.weights, state.run.world
    images, seed, size = run.images.train, run.config.seed, run.config.data.init_batch
    index = Batches(images, run.space, seed, size, False, world.device).indices(0)
    labels = run.images.labels.get("train")
    head = InOrder(images, index, run.space, seed, Purpose.INITIALISE, size, world.device, labels)
    if weights.joined is not None:
        weights.joined.part.initialise(head.recv())
    else:
        for position, inbox, outbox in (links := run.chain.open_links(head, (size,), 1, max(new), shared=False)):
            piece, packet = weights.slices[position], inbox.recv()
            with torch.no_grad():
                outbox.send((piece.initialise(packet) if position in new else piece.part(packet)).sealed())
        close(links)
        for position in new & set(world.mine):
            equalise(world, weights.slices[position])
    state.progress.learned |= new


def _with_new_heads(state: State, learners: tuple[int, ...]) -> set[int]:
    """Those of the learning parts that learned with another border or prior, and have a new head now."""
    run, weights = state.run, state.weights
    if run.config.cut.provisional_prior != "flow" or weights.joined is not None:
        return set()
    if run.world.resume_point:  # the others, which wait for this process, have none: it would ask them in vain
        return set()
    learning = [position for position in run.world.mine if position in learners]
    new = [position for position in learning if not weights.slices[position].prior.started]
    return {position for positions in run.world.gather(new) for position in positions}
