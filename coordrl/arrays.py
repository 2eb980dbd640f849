"""Arrays and tensors as bytes, and back again as if a stranger had sent them: no pickle, no size that is believed."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coordrl.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 1 << 20  # bytes of the JSON at the head of a .safetensors

# What numpy writes for an array without pickle, in C order; numpy itself would evaluate it as Python.
_NPY = re.compile(
    rb"\{'descr': '([<|](?:b1|[iu][1248]|f[248]))', 'fortran_order': False, 'shape': \(((?:\d{1,15}, ?)*\d{0,15})\), \} *\n"
)


def array_bytes(array: NDArray[Any]) -> bytes:
    """Return an array in .npy's format, in C order, without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def parse_array(data: bytes) -> NDArray[Any]:
    """Return the array of a .npy, as `array_bytes` makes it.

    Raises:
        ValueError: it is none, or not as long as it says.
    """
    length = int.from_bytes(data[8:10], "little")
    found = _NPY.fullmatch(data[10 : 10 + length])
    if data[:8] != b"\x93NUMPY\x01\x00" or found is None:
        raise ValueError("it is no .npy of numbers")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(side) for side in found[2].split(b",") if side.strip())
    size = len(data) - 10 - length
    if len(shape) > 8 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"an array of shape {shape} does not take {size} bytes")
    return np.frombuffer(data, dtype, math.prod(shape), 10 + length).reshape(shape).copy()


def parse_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, whose header is checked first: the library takes a key twice."""
    import safetensors.torch  # imports torch, which reading arrays needs not

    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    for name, entry in parse_json(data[8 : 8 + length]).items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        sides = isinstance(shape, list) and all(type(side) is int and 0 <= side < 2**40 for side in shape)
        if name != "__metadata__" and not sides:
            raise ValueError(f"{name!r:.60} has shape {shape!r:.60}")
    return safetensors.torch.load(data)
