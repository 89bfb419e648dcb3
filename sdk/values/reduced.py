"""Histograms of tensors of torch, made on the device where the tensor lives: only 70 numbers of each are copied.

A tensor of a CPU is counted at once. On a device everything is queued on the current stream, and nothing is asked of it: no
`item()`, no mask whose size the host would have to know. What comes of it is a tensor of `WIDTH` float64, which `Computed`
brings here when it is there.
"""

from __future__ import annotations

from typing import Any

from .histogram import Histogram

BINS = 64
# low edge, high edge, counts of NaN, inf and -inf, implicit zeros of a sparse tensor, then the counts of the bins.
_HEAD = 6
WIDTH = _HEAD + BINS
# Limit: a chunk of 512 KiB and what is made of it stay near the core: 14 ms for 10 M elements, 19 ms and more as a whole.
_CPU_CHUNK = 1 << 17
# Limit: float32 counts up to 2**24 exactly; also bounds what a huge parameter needs beside itself, 64 MiB.
_DEVICE_CHUNK = 1 << 24
# float32 tells numbers of this distance apart, relative to the larger of them.
_SPACING = 2.0**-23


def reduce_tensor(tensor: Any) -> Any:
    """The histogram of a tensor: a list of `WIDTH` numbers for one of a CPU, else a tensor of them on its device.

    A sparse tensor counts its implicit zeros. On a device the entries of the same index are counted one by one, as adding
    them up would wait for the device.
    """
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # a DTensor: what this process has of it
        tensor = tensor.to_local()
    zeros = 0
    if tensor.is_sparse:
        tensor, zeros = _entries(tensor)
    if tensor.is_complex():
        import torch

        tensor = torch.view_as_real(tensor)
    flat = tensor.reshape(-1)
    return _of_cpu(flat, zeros) if flat.device.type == "cpu" else _of_device(flat, zeros)


def histogram_from(numbers: Any) -> Histogram:
    """What `reduce_tensor` gave, as a value to be logged.

    Args:
        numbers: `WIDTH` of them, a list or a numpy array.
    """
    low, high, nan, inf, negative_inf, zeros = map(float, numbers[:_HEAD])
    counts = [int(count) for count in numbers[_HEAD:]]
    if zeros:
        low, high, counts = _with_zeros(low, high, counts, int(zeros))
    elif not any(counts):
        low, high = 0.0, 1.0
    width = high / BINS - low / BINS
    edges = [low + width * index for index in range(BINS)] + [high]
    odd = {"nan": int(nan), "inf": int(inf), "negative_inf": int(negative_inf)}
    return Histogram.counted(counts, edges, {name: count for name, count in odd.items() if count})


def _with_zeros(low: float, high: float, counts: list[int], zeros: int) -> tuple[float, float, list[int]]:
    """Implicit zeros added; where they are outside, the bins are made as wide as it takes, and filled by their middles."""
    if not any(counts):
        low, high = -0.5, 0.5
    first, last = min(low, 0.0), max(high, 0.0)
    width, before = (last - first) / BINS, (high - low) / BINS
    out = [0] * BINS
    for index, count in enumerate(counts):
        middle = low + before * (index + 0.5)
        out[min(int((middle - first) / width), BINS - 1)] += count
    out[min(int(-first / width), BINS - 1)] += zeros
    return first, last, out


def _entries(tensor: Any) -> tuple[Any, int]:
    """What a sparse tensor holds, and how many zeros it does not."""
    if tensor.device.type == "cpu":
        tensor = tensor.coalesce()
    values = tensor._values()
    return values, max(int(tensor.numel() - values.numel()), 0)


def _wide(part: Any) -> Any:
    """Numbers of a type that is wide enough to count with. A part at a time: a huge bfloat16 is not doubled."""
    return part.float() if part.dtype.itemsize < 4 or not part.is_floating_point() else part


def _padding(low: float, high: float) -> float:
    """How much is added on both sides of a range that is too narrow for so many edges; numpy takes 0.5 as well."""
    least = 2 * BINS * _SPACING * max(-low, high)
    return max(0.5, least) if high - low < least or high == low else 0.0


def _of_cpu(flat: Any, zeros: int) -> list[float]:
    import torch

    odd = [0, 0, 0]
    low = high = 0.0
    if flat.numel():
        low, high = map(float, torch.aminmax(flat))
        if not (-torch.inf < low <= high < torch.inf):
            finite = torch.isfinite(flat)
            strange = flat[~finite]
            odd = [int(part.sum()) for part in (strange.isnan(), strange == torch.inf, strange == -torch.inf)]
            flat = flat[finite]
            low, high = map(float, torch.aminmax(flat)) if flat.numel() else (0.0, 0.0)
    if not flat.numel():
        return [0.0, 0.0, *odd, zeros, *[0] * BINS]
    pad = _padding(low, high)
    low, high = low - pad, high + pad
    if not 1e-30 < high - low < 1e38:
        flat = flat.double() / 4  # where float32 has no width for a bin, or float64 none for the range
        scale, first = BINS / (high / 4 - low / 4), low / 4
    else:
        scale, first = BINS / (high - low), low
    counts = torch.zeros(BINS + 1, dtype=torch.int64)
    for part in flat.split(_CPU_CHUNK):
        counts += torch.bincount(_wide(part).sub(first).mul_(scale).to(torch.uint8), minlength=BINS + 1)
    listed: list[int] = counts.tolist()
    return [low, high, *odd, zeros, *listed[: BINS - 1], listed[BINS - 1] + listed[BINS]]


def _of_device(flat: Any, zeros: int) -> Any:
    """Queues it all; nothing here may ask the device for anything."""
    import torch

    count = flat.numel()
    parts = flat.split(_DEVICE_CHUNK) if count else ()
    zero = torch.zeros((), dtype=torch.float64, device=flat.device)
    lows, highs, odd = [], [], []
    for narrow in parts:
        part = _wide(narrow)
        finite = torch.isfinite(part)
        lows.append(torch.where(finite, part, torch.inf).amin().double())
        highs.append(torch.where(finite, part, -torch.inf).amax().double())
        odd.append(torch.stack([part.isnan().sum(), (part == torch.inf).sum(), (part == -torch.inf).sum()]))
    if not parts:
        return torch.cat([zero.expand(_HEAD - 1), (zero + zeros).reshape(1), zero.expand(BINS)])
    low, high = torch.stack(lows).amin(), torch.stack(highs).amax()
    # Without one finite number low is inf and high -inf: 0 and 0, and every bin stays empty.
    is_any = low <= high
    low, high = torch.where(is_any, low, 0.0), torch.where(is_any, high, 0.0)
    least = 2 * BINS * _SPACING * torch.maximum(-low, high)
    pad = torch.where((high - low < least) | (high == low), least.clamp(min=0.5), 0.0)
    low, high = low - pad, high + pad
    # A quarter, so that no difference of two numbers of the type is infinite.
    wide = _wide(flat[:1]).dtype
    first, span = (low / 4).to(wide), (high / 4 - low / 4).to(wide)
    counts = zero.expand(BINS)
    for part in parts:
        counts = counts + _counted(_wide(part).mul(0.25).sub_(first).div_(span))
    strange = torch.stack(odd).sum(0).double()
    head = torch.stack([low, high, *strange, zero + zeros])
    return torch.cat([head, counts])


def _counted(scaled: Any) -> Any:
    """How many of numbers from 0 to 1 are in each bin. NaN and infinities are in none."""
    import torch

    if not torch.are_deterministic_algorithms_enabled():
        return torch.histc(scaled, BINS, 0.0, 1.0).double()
    # histc adds in an order that nobody knows, which changes nothing here, but torch refuses it in this mode.
    ordered = torch.where(torch.isfinite(scaled), scaled, 2.0).sort().values
    inner = torch.arange(1, BINS, dtype=scaled.dtype, device=scaled.device) / BINS
    below = torch.searchsorted(ordered, inner)
    upto = torch.searchsorted(ordered, torch.ones(1, dtype=scaled.dtype, device=scaled.device), right=True)
    edges = torch.cat([below.new_zeros(1), below, upto])
    return (edges[1:] - edges[:-1]).double()
