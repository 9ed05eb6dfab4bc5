"""Numbers that a device has computed, read by the host later.

`Tensor.item()` makes the host wait until the device has done all that it was ever given, so that it has nothing to do
while the next batch is prepared. Here the copy to the host is queued behind the computation, and a reader that
comes a few batches later does not wait.
"""

import torch
from torch import Tensor


class AsyncScalars:
    """A few numbers on their way to the host.

    Args:
        numbers: scalars of one device.
    """

    def __init__(self, *numbers: Tensor) -> None:
        self._numbers: list[float] | None = None
        self._copy = torch.stack([number.float() for number in numbers])
        self._arrived: torch.cuda.Event | None = None
        if self._copy.is_cuda:
            device = self._copy.device
            self._copy = torch.empty(len(numbers), pin_memory=True).copy_(self._copy, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # no core spins for it
            self._arrived.record(torch.cuda.current_stream(device))

    def read(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self._numbers is None:
            if self._arrived:
                self._arrived.synchronize()
            self._numbers = self._copy.tolist()
        return self._numbers
