"""Reproducible randomness: seeds derived from names, and draws keyed per image.

A draw for an image depends on the seed, on the image's index in its split and on the draw's own name, and on nothing
else: not on the batch it travels in, not on the order of images, not on threads or device. Each key opens a
counter-based stream of its own (Philox 4x64-10, Salmon et al. 2011), so streams do not overlap.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import numpy.typing
    import torch


_COPY_BIT = 40
"""Copies of one image in a batch get indices of their own, past those of any data set."""


def derive_seed(*names: str | int) -> int:
    """Return a 63-bit seed that depends on every name and on their order."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*names: str | int) -> torch.Generator:
    """Return a torch generator on the CPU, seeded by ``derive_seed(*names)``."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*names))


@contextmanager
def global_seed(*names: str | int) -> Iterator[None]:
    """Seed the global state of torch, numpy and random for the block, and restore what was there before."""
    import random

    import numpy as np
    import torch

    seed = derive_seed(*names)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            # The same, less a millisecond: for devices that are not there, torch remembers the seed and who called.
            torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class ImageRandom:
    """Random draws for a batch of images, keyed per image and purpose.

    ``purpose`` is any tuple of names and numbers; drawing twice for the same purpose gives the same values.
    """

    def __init__(self, seed: int, indices: Sequence[int], *, path: tuple[str | int, ...] = ()) -> None:
        self._seed = seed
        self._indices = tuple(int(index) for index in indices)
        self._path = path

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def indices(self) -> tuple[int, ...]:
        """The images, by index."""
        return self._indices

    def child(self, *names: str | int) -> ImageRandom:
        """Return the same images' randomness under a longer name."""
        return ImageRandom(self._seed, self._indices, path=(*self._path, *names))

    def select(self, rows: torch.Tensor) -> ImageRandom:
        """Return the randomness of the images at ``rows`` (indices or a boolean mask) of this batch.

        An image that stands there more than once draws other values each time.
        """
        import torch

        chosen = torch.arange(len(self._indices))[rows.cpu()].tolist()
        copies: Counter[int] = Counter()
        indices = []
        for row in chosen:
            indices.append(self._indices[row] + (copies[row] << _COPY_BIT))
            copies[row] += 1
        return ImageRandom(self._seed, indices, path=self._path)

    def uniform(self, shape: Sequence[int], *purpose: str | int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Return float32 draws ``[N, *shape]``, uniform between ``low`` and ``high``."""
        drawn = self._draw(shape, purpose, "uniform")
        return drawn * (high - low) + low

    def normal(self, shape: Sequence[int], *purpose: str | int) -> torch.Tensor:
        """Return float32 standard normal draws ``[N, *shape]``."""
        return self._draw(shape, purpose, "normal")

    def _draw(self, shape: Sequence[int], purpose: tuple[str | int, ...], law: str) -> torch.Tensor:
        import numpy as np
        import torch

        drawn = np.empty((len(self._indices), *shape), dtype=np.float32)
        # One bit generator that is given each key, since making one costs four times as much as what it draws.
        bits = np.random.Philox(key=0)
        stream, fresh = np.random.Generator(bits), bits.state
        key: numpy.typing.NDArray[numpy.uint64] = fresh["state"]["key"]
        key[0] = derive_seed(self._seed, *self._path, *purpose, law)
        for row, index in enumerate(self._indices):
            key[1] = index
            bits.state = fresh
            if law == "uniform":
                drawn[row] = stream.random(tuple(shape), dtype=np.float32)
            else:
                drawn[row] = stream.standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(drawn)
