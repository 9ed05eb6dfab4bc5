"""Errors with a cause that a command says in one sentence: who was lost, what could not be saved, who asked to stop."""


class LostError(ConnectionError):
    """Another process did not answer.

    Attributes:
        rank: of the other process, where it is known.
        timed_out: whether it lives, as far as the transport knows, and what was due did not come in time.
    """

    def __init__(self, message: str, rank: int | None = None, timed_out: bool = False) -> None:
        super().__init__(message)
        self.rank, self.timed_out = rank, timed_out


class NoReturnError(LostError):
    """Another process did not answer, and the others will not meet again."""


class JoinError(RuntimeError):
    """The joined model is not the model that the parts make."""


class SaveError(OSError):
    """A checkpoint could not be written; the message says which process could not, and why."""


class StopRequested(Exception):
    """The run was asked to stop, and has been saved.

    Attributes:
        step: of the checkpoint.
        cause: who asked, such as "SIGTERM".
    """

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"stopped at step {step} by {cause}")
        self.step, self.cause = step, cause
