"""Where the pretrained networks under LPIPS come from, and the checks that they are the published ones.

They are looked for in the directory that ``AUBENCH_WEIGHTS`` names, then in the cache of ``torch.hub``; only ``fetch``
downloads. A file that is found but is not the published one is refused, neither replaced nor passed over: its owner
meant it to be used, and would not learn that it was not.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoshield_bench.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

TORCHVISION = "https://download.pytorch.org/models/"
TIMEOUT = 10.0
"""Seconds without an answer after which a download is given up."""


@dataclass(frozen=True, kw_only=True)
class BackboneWeights:
    """The published weights of one network."""

    file: str
    """torchvision's file; its name ends in the first digits of the SHA-256 of its content."""

    features_file: str = ""
    """File that holds the convolutional part alone; empty where there is none."""

    features_sha256: str = ""
    """``content_hash`` of the convolutional part; where empty, torchvision's whole file is checked by its name."""

    @property
    def sha256_prefix(self) -> str:
        """First digits of the SHA-256 of torchvision's file."""
        return Path(self.file).stem.rpartition("-")[2]

    @property
    def names(self) -> tuple[str, ...]:
        """File names that will do, the smallest file first."""
        return (self.features_file, self.file) if self.features_file else (self.file,)


BACKBONES: Mapping[str, BackboneWeights] = {
    "squeeze": BackboneWeights(
        file="squeezenet1_1-b8a52dc0.pth",
        features_file="squeezenet1_1_features.pth",
        features_sha256="9b5f6a85fc0db8806baf9a5f2c2be55957e38b2de75d67d72477f2b5a2baf148",
    ),
    "alex": BackboneWeights(file="alexnet-owt-7be5be79.pth"),
    "vgg": BackboneWeights(file="vgg16-397923af.pth"),
}
"""By the names that the ``lpips`` package gives them."""


def hub_directory() -> Path:
    """Return where ``torch.hub`` keeps checkpoints, by its own rules, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or Path(cache) / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def find(weights: BackboneWeights) -> Path | None:
    """Return the first file found on this machine, unread; None if there is none."""
    named = os.environ.get("AUBENCH_WEIGHTS")
    places = [Path(named).expanduser() / name for name in weights.names] if named else []
    places.append(hub_directory() / weights.file)
    return next((path for path in places if path.is_file()), None)


def missing(weights: BackboneWeights) -> str:
    """Return one line: what is missing, where it was looked for and what to do."""
    named = os.environ.get("AUBENCH_WEIGHTS")
    places = f"neither {named} (AUBENCH_WEIGHTS) nor {hub_directory()} holds" if named else f"{hub_directory()} has no"
    return (
        f"{places} {weights.file}; set AUBENCH_WEIGHTS to a directory holding {' or '.join(weights.names)}, "
        "or run with network"
    )


def fetch(weights: BackboneWeights) -> Path:
    """Return the file, downloaded into the cache of ``torch.hub`` unless it is on this machine already.

    Raises:
        Unavailable: It cannot be downloaded, or what came is not the published file.
    """
    found = find(weights)
    if found is not None:
        return found
    destination = hub_directory() / weights.file
    try:
        download(TORCHVISION + weights.file, destination, weights.sha256_prefix)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{missing(weights)} (download failed: {error})") from error
    return destination


def download(url: str, destination: Path, sha256_prefix: str) -> None:
    """Download a file; ``destination`` appears whole and verified, or not at all.

    Raises:
        Unavailable: The SHA-256 of the content does not start with ``sha256_prefix``.
        OSError: The network or the disk fails.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=destination.parent, prefix=".aubench-", delete=False) as part:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310 (the scheme is a constant)
                while block := answer.read(1 << 20):
                    digest.update(block)
                    part.write(block)
            _check_digest(url, digest.hexdigest(), sha256_prefix, "try again")
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(destination)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    directory = os.open(destination.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_features(weights: BackboneWeights, path: Path) -> dict[str, Tensor]:
    """Read and verify the convolutional part: ``{"0.weight": ...}``, by index in torchvision's ``features``.

    Raises:
        Unavailable: The file cannot be read, or does not hold the published weights.
    """
    import torch

    if not weights.features_sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        _check_digest(path, found, weights.sha256_prefix, "replace or remove it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail in almost any way, from UnpicklingError to IndexError.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refused(path, f"cannot be read as weights ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _refused(path, "holds something else than named tensors")
    prefix = "features."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if weights.features_sha256 and content_hash(state) != weights.features_sha256:
        raise _refused(path, f"is not the published network (content hash {content_hash(state)[:12]}...)")
    return dict(state)


def content_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names in order, shapes and little-endian float32 values: the same in any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {'x'.join(str(side) for side in tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _check_digest(origin: str | Path, found: str, prefix: str, remedy: str) -> None:
    if not found.startswith(prefix):
        raise Unavailable(f"{origin}: not the published file (its SHA-256 starts {found[: len(prefix)]}); {remedy}")


def _refused(path: Path, reason: str) -> Unavailable:
    return Unavailable(f"{path}: {reason}; replace or remove it")
