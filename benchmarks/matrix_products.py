"""What a Glow's optimizer step cannot do without: the matrix products of its convolutions, counted and timed."""

import math
import time
from collections import Counter

import torch
from peer_glows import Size


def matrix_products(size: Size, batch: int) -> Counter[tuple[int, int, int]]:
    """(m, k, n) → how many products (m, k) · (k, n) a step has: those of convolutions as matrices (im2col).

    A convolution of N pixels from K = kernel²·C_in numbers to M channels is (N, K)(K, M); its weights' gradient is
    (K, N)(N, M) and its input's (N, M)(M, K).
    """
    found: Counter[tuple[int, int, int]] = Counter()
    for channels, height, width in size.level_shapes():
        moved, hidden, n = channels // 2, size.hidden, batch * height * width
        convolutions = [(9 * (channels - moved), hidden), (hidden, hidden), (9 * hidden, 2 * moved)]
        for k, m in [(channels, channels), *convolutions]:
            for shape in ((n, k, m), (k, n, m), (n, m, k)):
                found[shape] += size.steps
    return found


def product_time(shape: tuple[int, int, int], device: torch.device) -> float:
    """Seconds of one matrix product; the first is for warming up."""
    m, k, n = shape
    a, b = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
    out = a @ b
    began = now(device)
    torch.mm(a, b, out=out)
    return now(device) - began


def operations(products: list[tuple[tuple[int, int, int], int]]) -> float:
    """Floating-point operations of the products of a step; a multiply-add is two."""
    return float(sum(2 * count * math.prod(shape) for shape, count in products))


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
