"""A sum tree: numbers at places, and the place at which a running sum of them passes a target (Schaul et al. 2016)."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from coordrl.errors import RequestError


@final
class SumTree:
    """Numbers from 0 at `size` places, all 0 at first, with their sum; setting and finding take logarithmic time.

    Every node is the sum of its two children, made anew whenever one of them changes, and never by adding a
    difference: rounding does not grow with the number of changes, and the tree is a function of its leaves.

    Args:
        size: how many places; at least 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise RequestError(f"size is {size}; it is at least 1")
        self.size = size
        self._depth = max(1, (size - 1).bit_length())
        self._first = 1 << self._depth  # the node of place 0
        self._nodes = np.zeros(2 * self._first)  # node 1 is the root, and those of node i are 2 i and 2 i + 1

    @property
    def total(self) -> float:
        """The sum of all numbers."""
        return float(self._nodes[1])

    @property
    def values(self) -> NDArray[np.float64]:
        """The numbers, (size,): a view."""
        return self._nodes[self._first : self._first + self.size]

    def get(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers at some places."""
        return self.values[places]

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64] | float) -> None:
        """Put numbers at places; where a place comes twice, the last one counts.

        Raises:
            RequestError: a number is negative or not finite, or there is no such place.
        """
        numbers = np.broadcast_to(np.asarray(values, dtype=np.float64), np.shape(places))
        if not np.isfinite(numbers).all() or (numbers < 0).any():
            raise RequestError("a priority is negative or not finite; they are numbers from 0")
        if np.size(places) == 0:
            return
        if places.min() < 0 or places.max() >= self.size:
            raise RequestError(f"places are from {places.min()} to {places.max()}; there are 0 to {self.size - 1}")
        nodes = places + self._first
        self._nodes[nodes] = numbers
        for _ in range(self._depth):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def fill(self, values: NDArray[np.float64]) -> None:
        """Put numbers at all places, (size,).

        Raises:
            RequestError: a number is negative or not finite, or there are more or fewer of them.
        """
        if values.shape != (self.size,) or not np.isfinite(values).all() or (values < 0).any():
            raise RequestError(f"priorities are no {self.size:,} numbers from 0")
        self.values[:] = values
        first = self._first
        while first > 1:  # level by level, from the leaves
            level = self._nodes[first : 2 * first]
            first >>= 1
            self._nodes[first : 2 * first] = level[0::2] + level[1::2]

    def find(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the place at which the running sum passes each target, from 0 and below the total.

        With targets spread evenly, a place comes as often as its number is large, and one of number 0 never.

        Raises:
            RequestError: all numbers are 0.
        """
        if self.total <= 0.0:
            raise RequestError("every priority is 0; add transitions first")
        rest = targets.astype(np.float64)
        nodes = np.ones(rest.shape, dtype=np.int64)
        for _ in range(self._depth):
            nodes *= 2
            left = self._nodes[nodes]
            # A target that rounding has put at the end of everything must not lead to an empty place.
            right = (rest >= left) & (self._nodes[nodes + 1] > 0)
            rest = np.where(right, rest - left, rest)
            nodes += right
        return nodes - self._first

    def check(self) -> None:
        """Check that every node is the sum of its children, and that nothing lies beyond the last place.

        Raises:
            AssertionError: it is not so.
        """
        inner = self._nodes[1 : self._first]
        children = self._nodes[2:].reshape(-1, 2)
        if not np.array_equal(inner, children[:, 0] + children[:, 1]):
            raise AssertionError("a node is not the sum of its children")
        if self._nodes[self._first + self.size :].any() or (self._nodes < 0).any():
            raise AssertionError("a number lies where no place is, or is negative")


@final
class TreePart:
    """Some columns of a sum tree whose places are a table, row by row: set and read as if they were all there is.

    Args:
        tree: the whole.
        columns: of the table.
        first: column of the part.
        width: columns of the part.
    """

    def __init__(self, tree: SumTree, columns: int, first: int, width: int) -> None:
        self._tree, self._columns, self._first, self._width = tree, columns, first, width
        self.size = tree.size // columns * width

    @property
    def values(self) -> NDArray[np.float64]:
        """The numbers, (size,): a copy."""
        return self.get(np.arange(self.size))

    def get(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the numbers at some places."""
        return self._tree.get(self._find(places))

    def set(self, places: NDArray[np.int64], values: NDArray[np.float64] | float) -> None:
        """Put numbers at places; see SumTree."""
        self._tree.set(self._find(places), values)

    def fill(self, values: NDArray[np.float64]) -> None:
        """Put numbers at all places, (size,)."""
        self.set(np.arange(self.size), values)

    def _find(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where places of the part are in the whole."""
        rows, columns = np.divmod(places, self._width)
        return rows * self._columns + self._first + columns
