"""What a run does between two segments: it evaluates what it has learned, saves it, and ends a phase."""

import math

from ..data import Images, Split
from ..storage import Saver
from .evaluation import Ledger, evaluate
from .recorder import Record
from .state import State


class Pauses:
    """Evaluates, saves and records a run; every process must call each method.

    Args:
        state: the run.
        record: of the run.
        saver: of its checkpoints.
    """

    def __init__(self, state: State, record: Record, saver: Saver) -> None:
        self._state, self._record, self._saver = state, record, saver
        self._evaluated: tuple[int, Ledger] | None = None

    def check(self) -> None:
        """Raises what went wrong in the thread that saves."""
        self._saver.check()

    def evaluate(self) -> None:
        """On the validation split, or without one on the test split: the parts that have started to learn."""
        step, (split, images) = self._state.progress.step, self._state.run.images.evaluated()
        again = self._evaluated is not None and self._evaluated[0] == step  # with a process that was lost meanwhile
        self._evaluated = step, self._score(split, images, silent=again)

    def ledger(self) -> Ledger:
        """The evaluation of this step, made now if there is none."""
        if self._evaluated is None or self._evaluated[0] != self._state.progress.step:
            self.evaluate()
        assert self._evaluated
        return self._evaluated[1]

    def test(self) -> Ledger:
        """The evaluation on the test split at the end of the run; the only one where there is a validation split."""
        images = self._state.run.images
        return self.ledger() if images.validation is None else self._score("test", images.test)

    def _score(self, split: Split, images: Images, silent: bool = False) -> Ledger:
        run, slices, last = self._state.run, self._state.weights.slices, max(self._state.progress.learned)
        space, labels = run.space, run.images.labels.get(split)
        ledger = evaluate(run.chain, slices, images, space, run.config.seed, run.packet_images, last, labels)
        if not silent:
            self._record.evaluated(ledger, split)
        return ledger

    def save(self) -> None:
        """Begins a checkpoint of this step; the first replicas' weights, since all are equal."""
        world, weights = self._state.run.world, self._state.weights
        step = self._state.progress.step
        bits = self._evaluated[1].bits_per_dim if self._evaluated and self._evaluated[0] == step else None
        parts = {part: weights.part_state(part) for part in world.mine if world.leads}
        self._saver.save(parts, self._state.manifest(bits))
        if world.config.rejoin_s:
            self._saver.settle()  # a process that is lost after this point must not owe its share of a checkpoint

    def end_phase(self, number: int, steps: int) -> None:
        """Saves and records a phase that has been trained and evaluated.

        Raises:
            FloatingPointError: the bits/dim of the evaluation is not finite; nothing of the model was saved.
        """
        run, progress, ledger = self._state.run, self._state.progress, self.ledger()
        schedule, (split, _) = run.config.phases[number - 1].schedule, run.images.evaluated()
        if not all(math.isfinite(part["bits_per_dim"]) for part in ledger.parts):
            raise FloatingPointError(
                f"Phase {number} ({schedule}) ends at step {progress.step} with a model whose {split} bits/dim is not "
                "finite; nothing of it was saved. Try a lower lr, a warm-up or clipping."
            )
        if len(progress.ended) < number:  # else again, with a process that was lost meanwhile
            images_per_s = steps * run.config.data.batch / progress.elapsed["train_seconds"]
            ended = {"schedule": schedule, "steps": steps, **progress.elapsed, "images_per_s": images_per_s}
            progress.ended = [*progress.ended, ended]
        progress.elapsed = dict.fromkeys(progress.elapsed, 0.0)
        self.save()
        self._saver.settle()
        self._record.phase_ends(ledger)
