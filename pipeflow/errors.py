"""Errors with a cause that a command says in one sentence: who was lost, what could not be saved, who asked to stop."""

import re


class LostError(ConnectionError):
    """Another process did not answer.

    Args:
        message: what was not done for want of it.
        error: of the transport; its words are kept, its source lines and advice are not.
        rank: of the other process, where it is known.
    """

    def __init__(self, message: str, error: Exception | None = None, rank: int | None = None) -> None:
        words = re.sub(r"\[[^\]]*\.cc:\d+\]\s*|\. This is typically.*", "", " ".join(str(error or "").split()))
        super().__init__(f"{message}: {words}" if words else message)
        self.rank = rank


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
