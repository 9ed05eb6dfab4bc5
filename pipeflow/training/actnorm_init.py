"""ActNorm's data-dependent start: a part starts when it first learns, from the parts before it as they are then.

To start part 2 behind a part 1 that has not learned would manufacture an instability. One packet of its own size goes
down the chain; whoever is new starts from it, and hands on what it has become. Every replica starts from the same
images, and takes what the first replica made of them: hosts of different make round differently.
"""

import torch

from ..data import Batches, InOrder, Purpose
from ..stream import close
from .state import State


def start(state: State, learners: tuple[int, ...]) -> None:
    """Starts those of the learning parts that never learned; every process must call it.

    Args:
        state: the run; end to end, the whole model is started, in every process from the same images.
        learners: positions of the parts that are about to learn.
    """
    new = set(learners) - state.learned
    if not new:
        return
    images, pixels, seed, device = state.images.train, state.pixels, state.config.seed, state.world.device
    size = state.config.data.init_batch
    index = Batches(images, pixels, seed, size, False, device).indices(0)
    head = InOrder(images, index, pixels, seed, Purpose.INITIALISE, size, device)
    if state.whole is not None:
        state.whole.part.initialise(head.recv())
    else:
        for place, inbox, outbox in (ends := state.chain.lay(head, size, 1, max(new))):
            piece, given = state.slices[place], inbox.recv()
            with torch.no_grad():
                outbox.send((piece.initialise(given) if place in new else piece.part(given)).sealed())
        close(ends)
        for place in new & set(state.world.mine):
            state.world.equalise(state.slices[place])
    state.learned |= new
