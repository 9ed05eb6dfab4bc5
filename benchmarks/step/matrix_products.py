"""What a Glow's optimizer step cannot do without: the matrix products of its convolutions, counted and timed."""

import math
import time
from collections import Counter

import torch

from benchmarks.lib.timing import Clock, now
from benchmarks.lib.workload import Workload

Products = Counter[tuple[int, int, int]]


def matrix_products(workload: Workload) -> Products:
    """(m, k, n) → how many products (m, k) · (k, n) a step has: those of convolutions as matrices (im2col).

    A convolution of N pixels from K = kernel²·C_in numbers to M channels is (N, K)(K, M); its weights' gradient is
    (K, N)(N, M) and its input's (N, M)(M, K). Of the images themselves nobody needs a gradient.
    """
    found: Products = Counter()
    for channels, height, width in workload.level_shapes():
        moved, hidden, n = channels // 2, workload.hidden, workload.batch * height * width
        convolutions = [(9 * (channels - moved), hidden), (hidden, hidden), (9 * hidden, 2 * moved)]
        for k, m in [(channels, channels), *convolutions]:
            for shape in ((n, k, m), (k, n, m), (n, m, k)):
                found[shape] += workload.steps
    channels, height, width = next(workload.level_shapes())
    found[workload.batch * height * width, channels, channels] -= 1
    return found


def products_time(products: Products, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds of all products of a step, by `torch.mm` in float32: each size is timed once, after one to warm up."""
    return sum(count * _product_time(shape, device, clock) for shape, count in products.items())


def _product_time(shape: tuple[int, int, int], device: torch.device, clock: Clock) -> float:
    m, k, n = shape
    a, b = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
    out = a @ b
    start = now(device, clock)
    torch.mm(a, b, out=out)
    return now(device, clock) - start


def operations(products: Products) -> float:
    """Floating-point operations of the products of a step; a multiply-add is two."""
    return float(sum(2 * count * math.prod(shape) for shape, count in products.items()))
