"""The network of ``stlpips-pytorch`` with the weights from its wheel, verified; no network connection is used.

The library's own loading takes any file with any keys, and downloads nothing either. What is added here: the file must
be the published one, it cannot run code, and it must fill the network exactly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from autoshield_bench.errors import Unavailable

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "stlpips-pytorch"

REQUIRED: Mapping[str, str] = {
    "stlpips_pytorch": f"{LIBRARY}==0.0.2",
    "IPython": "ipython",
    "torchsummary": "torchsummary",
    "torchvision": "torchvision",
}
"""What to install for a module that is missing; the library declares none of those that it imports."""

SHA256: Mapping[str, str] = {
    "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
}
"""Of the weights file, by the name that the library gives the backbone; as in the RECORD of the wheel of 0.0.2."""


def weights_file(backbone: str) -> Traversable:
    """Return where the wheel has the weights, whether they are there or not. Imports nothing heavy.

    Raises:
        ModuleNotFoundError: The library is not installed.
    """
    return resources.files("stlpips_pytorch") / "weights" / "vST0.0" / f"{backbone}_shift_tolerant.pth"


def missing(backbone: str) -> str | None:
    """Return in one line what is not there and what to do, None if nothing is missing; nothing heavy is imported."""
    for module, requirement in REQUIRED.items():
        if importlib.util.find_spec(module) is None:
            return f"the module {module} is not installed; pip install {requirement}"
    file = weights_file(backbone)
    return None if file.is_file() else f"there is no {file}; {_reinstall()}"


def version() -> str:
    """Return the library with its version, for a reader."""
    try:
        return f"{LIBRARY} {metadata.version(LIBRARY)}"
    except metadata.PackageNotFoundError:
        return f"{LIBRARY} (not installed)"


def load(backbone: str) -> nn.Module:
    """Return the network on the CPU, frozen and in evaluation mode: ``network(a, b, normalize=True)``.

    Leaves the global generators, the warning filters and the standard streams alone.

    Raises:
        Unavailable: Something is missing, or the weights are not those of the published wheel.
    """
    reason = missing(backbone)
    if reason is not None:
        raise Unavailable(reason)
    state = _published_state(backbone)
    network = _untrained(backbone)
    # The library holds its linear layers twice, as lin0 and as lins.0, and the file names them once.
    state |= {name.replace("lin", "lins.", 1): value for name, value in state.items() if name.startswith("lin")}
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        fault = " ".join(str(error).split())
        raise Unavailable(f"{weights_file(backbone)}: does not fit the network: {fault}; {_reinstall()}") from error
    return network.requires_grad_(False).eval()


def _published_state(backbone: str) -> dict[str, Any]:
    import torch

    file = weights_file(backbone)
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[backbone]:
        raise Unavailable(f"{file}: not the published file (its SHA-256 starts {found[:12]}); {_reinstall()}")
    try:
        return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:
        # Bytes that are no checkpoint fail in almost any way, from UnpicklingError to IndexError.
        fault = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unavailable(f"{file}: cannot be read as weights ({fault}); {_reinstall()}") from error


def _untrained(backbone: str) -> nn.Module:
    import torch

    # IPython, which the library imports for a debugging aid, adds filters of its own.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from stlpips_pytorch import stlpips  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise Unavailable(f"{LIBRARY} cannot be imported ({error}); {_reinstall()}") from error
    # On the meta device no weights are drawn at random, so the global generator stays where it is, and the classifier
    # that VGG is built with and loses again takes neither 494 MB nor two seconds.
    with torch.device("meta"):
        network: nn.Module = stlpips.LPIPS(net=backbone, variant="shift_tolerant", pretrained=False, verbose=False)
    return network


def _reinstall() -> str:
    return f"pip install --force-reinstall --no-deps {REQUIRED['stlpips_pytorch']}"
