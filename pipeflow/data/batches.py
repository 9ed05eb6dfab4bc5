"""Images in memory → the packets that enter the flow.

`torch.utils.data.DataLoader` owns worker processes, a sampler and a generator state; images that fit in memory (or in a
memory map) need none of that. Batch t holds positions tB … (t+1)B − 1 of the epochs' permutations laid end to end, so
shapes are static, the place in the data is one integer, and a process that shares a batch takes a slice of it.
"""

import math
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ..flow import Packet
from .datasets import Labels
from .points import Space
from .rng import Purpose, permutation, uniform, words


def share(images: int, batch: int, place: int, size: int) -> range:
    """Numbers of the images that the `place`-th of `size` scores: consecutive batches, as even as can be, maybe none.

    The batches are those of one process, since float32 sums may differ with the number of images beside one another.
    """
    batches = math.ceil(images / batch)
    first, end = (min(images, batches * at // size * batch) for at in (place, place + 1))
    return range(first, end)


ImageArray = np.ndarray | Tensor


def resident(images: np.ndarray, device: torch.device) -> ImageArray:
    """Images (N, H, W, C) uint8 on the GPU for good, if a quarter of its free memory holds them; else as given."""
    if device.type != "cuda" or images.nbytes > 0.25 * torch.cuda.mem_get_info(device)[0]:
        return images
    return torch.from_numpy(np.ascontiguousarray(images)).to(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of host memory where packets are made; the host does not wait until a GPU has come to it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(images: ImageArray, index: np.ndarray, device: torch.device) -> Tensor:
    """images (N, H, W, C) uint8, index (B,) → (B, C, H, W) uint8 on the device; points (N, *event) stay as they are."""
    if isinstance(images, Tensor):
        chosen = images[to_device(torch.from_numpy(index), images.device)]
    else:
        chosen = to_device(torch.from_numpy(np.ascontiguousarray(images[index])), device)
    return chosen.permute(0, 3, 1, 2).contiguous() if chosen.dtype == torch.uint8 else chosen


def labels_of(labels: Labels | None, index: Tensor, device: torch.device) -> Tensor | None:
    """The labels of the images `index` (B,), int64, on the device; None where there are none."""
    return None if labels is None else to_device(torch.from_numpy(labels[index.numpy()]), device)


class Batches:
    """The training images as an endless inbox.

    Args:
        images: (N, H, W, C) uint8; what `resident` returned is drawn from where it is.
        pixels: what they look like.
        seed: of order, flips and noise.
        batch: images a packet, over all processes that share it.
        flip: horizontal flips at random.
        device: where packets are made.
        start: number of the first batch.
        shard: (i, n): this process takes the i-th of n equal slices of each batch.
        labels: (N,) int64, of the images; none by default.
        dropout: share of them that is withheld.
    """

    def __init__(
        self,
        images: ImageArray,
        pixels: Space,
        seed: int,
        batch: int,
        flip: bool,
        device: torch.device,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
        labels: Labels | None = None,
        dropout: float = 0.0,
    ) -> None:
        self.images, self.pixels, self.seed, self.batch, self.flip, self.device = (
            images, pixels, seed, batch, flip, device,
        )  # fmt: skip
        self.position = start
        self.shard, self.labels, self.dropout = shard, labels, dropout
        self._orders: dict[int, Tensor] = {}

    def recv(self) -> Packet:
        """The next batch: z (B/n, C, H, W)."""
        self.position += 1
        return self.at(self.position - 1)

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""

    def at(self, t: int, within: slice = slice(None)) -> Packet:
        """Batch t, whatever was asked for before; or those images of this process's share that lie `within`."""
        i, n = self.shard
        share = self.batch // n
        first = t * self.batch + i * share
        taken = range(first, first + share)[within]
        return Packet.joined([self._packet(*piece) for piece in self._pieces(taken.start, taken.stop)])

    def indices(self, t: int) -> Tensor:
        """Numbers of the images of batch t, (B,), over all processes that share it."""
        return torch.cat([index for _, index in self._pieces(t * self.batch, (t + 1) * self.batch)])

    def _pieces(self, first: int, end: int) -> list[tuple[int, Tensor]]:
        """(epoch, image indices) of the positions first … end − 1, which may lie in more than one epoch."""
        pieces, size = [], len(self.images)
        while first < end:
            epoch, offset = divmod(first, size)
            stop = min(end, (epoch + 1) * size)
            pieces.append((epoch, self._order(epoch)[offset : offset + stop - first]))
            first = stop
        return pieces

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = permutation(self.seed, epoch, len(self.images))
        return self._orders[epoch]

    def _packet(self, epoch: int, index: Tensor) -> Packet:
        pixels, label = fetch(self.images, index.numpy(), self.device), labels_of(self.labels, index, self.device)
        index = to_device(index, self.device)
        if label is not None and self.dropout:
            withheld = uniform(self.seed, Purpose.LABEL, epoch, index, 1).squeeze(1) < self.dropout
            label = torch.where(withheld, -1, label)
        if self.flip:
            flipped = (words(self.seed, Purpose.FLIP, epoch, index, 1) & 1).bool().view(-1, 1, 1, 1)
            pixels = torch.where(flipped, pixels.flip(3), pixels)
        return self.pixels.noisy(pixels, self.seed, Purpose.DEQUANTISE, epoch, index)._replace(label=label)


def packet_sizes(batch: int, packets: int) -> tuple[int, ...]:
    """Images per packet of a batch that is cut into `packets`: as even as can be, the larger ones first."""
    return tuple(batch // packets + (number < batch % packets) for number in range(packets))


class MicroBatches:
    """The batches of an inbox, each drawn packet by packet: noise takes several times the memory of its images.

    Args:
        batches: the inbox.
        sizes: images per packet; their sum is a batch.
    """

    def __init__(self, batches: Batches, sizes: tuple[int, ...]) -> None:
        self._batches = batches
        self._packets = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self._number = 0

    def recv(self) -> Packet:
        packet = self._batches.at(self._batches.position, self._packets[self._number])
        self._number = (self._number + 1) % len(self._packets)
        self._batches.position += self._number == 0
        return packet

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""


class InOrder:
    """Images in the order in which they are stored, each once, as an inbox: for evaluation and for ActNorm's start.

    Args:
        images: (N, H, W, C) uint8.
        index: (M,) which images, in this order.
        pixels: what they look like.
        seed, purpose: of the noise, which depends on the image's own number alone.
        batch: images a packet; the last one holds what is left.
        device: where packets are made.
        labels: (N,) int64, of the images; none by default.
    """

    def __init__(
        self,
        images: np.ndarray,
        index: Tensor,
        pixels: Space,
        seed: int,
        purpose: Purpose,
        batch: int,
        device: torch.device,
        labels: Labels | None = None,
    ) -> None:
        self.images, self.pixels, self.seed, self.purpose, self.device = images, pixels, seed, purpose, device
        self.labels = labels
        self._batches = iter(torch.split(index, batch))

    def recv(self) -> Packet:
        """The next images: z (B, C, H, W)."""
        index = next(self._batches)
        pixels, label = fetch(self.images, index.numpy(), self.device), labels_of(self.labels, index, self.device)
        packet = self.pixels.noisy(pixels, self.seed, self.purpose, 0, to_device(index, self.device))
        return packet._replace(label=label)

    def close(self, early: bool = False) -> None:
        """Nothing is on its way."""
