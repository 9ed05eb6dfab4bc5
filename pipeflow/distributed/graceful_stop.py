"""Stopping on request, at one step in all processes.

Parts work on different batches at any moment, and none may be left waiting for a packet. So the head of the chain
sets the last step before it sends that batch: every process that has taken part in the batch finds it, and stops.
Heads of other replicas may be ahead of it where they do not learn; so it sets a step that none can have reached.
"""

import time

from .world import World

_POLL_S = 0.1


def ask(world: World, cause: str) -> None:
    """Asks all processes to stop soon, from any process and any thread."""
    world.store.set("asked", cause)


class Stop:
    """A process's view of the request to stop.

    Args:
        world: the processes.

    Attributes:
        reached: the furthest step of any process when all last met; one that was lost catches up to it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.reached = 0
        self._looked = 0.0
        self._named = world.store.get("last") is not None

    def before(self, step: int) -> None:
        """Called before batch `step`: the first process looks, now and then, whether somebody asked."""
        now = time.monotonic()
        if self.world.rank == 0 and not self._named and step > self.reached and now - self._looked >= _POLL_S:
            self._looked = now
            if self.cause():
                self._named = True
                grid = self.world.grid
                lead = grid.lead(self.world.config.depth) if grid.size > grid.stages else 0
                self.world.store.set("last", step + lead)

    def after(self, step: int) -> bool:
        """Called after batch `step`: whether it was the last."""
        return bool(self.world.store.get("last") == step)

    def cause(self) -> str:
        """Who asked; empty while nobody has."""
        return self.world.store.get("asked") or ""
