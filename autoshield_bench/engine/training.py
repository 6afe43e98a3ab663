"""Training of classifiers by the harness: one fixed recipe, everything drawn from the seed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoshield_bench.contracts import Recipe
from autoshield_bench.engine.lean import lean
from autoshield_bench.errors import CheckpointError


def train_classifier(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    device: str,
    progress: Callable[[int, int], None],
) -> None:
    """Train ``network`` in place on images ``[N, C, H, W]`` and labels ``[N]``: cross-entropy, AdamW, one-cycle.

    Raises FloatingPointError where the loss is no longer finite.
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    arranged = lean(network)
    batches_per_epoch = -(-len(images) // recipe.batch_size)
    total = recipe.epochs * batches_per_epoch
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=total, pct_start=0.2)
    done = 0
    for _epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in torch.split(order, recipe.batch_size):
            batch = images[rows].to(device, memory_format=torch.channels_last)
            loss = functional.cross_entropy(arranged(batch), labels[rows].to(device))
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"the training loss is {float(loss)} at step {done} of {total}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            if done % 10 == 0 or done == total:
                progress(done * recipe.batch_size, total * recipe.batch_size)
    network.eval()


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint: safetensors, or by any other ending what ``torch.save`` wrote.

    Raises CheckpointError naming the file and the remedy.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
        return load(data) if path.suffix == ".safetensors" else _weights_alone(path, data)
    except OSError as error:
        raise CheckpointError(
            f"{path}: the checkpoint cannot be read ({error.strerror}); check `checkpoint` in the suite"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error}); save the weights with safetensors.torch"
        ) from error


def _weights_alone(path: Path, data: bytes) -> Mapping[str, Tensor]:
    """Return the tensors of a pickle of torch's, read by an unpickler that knows tensors and containers and no more."""
    known = torch.serialization.get_safe_globals()
    # What a plugin has called safe elsewhere is not safe here.
    torch.serialization.clear_safe_globals()
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint fail in almost any way, from UnpicklingError to IndexError.
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: holds more than weights, or is no file of torch.save ({text}); save model.state_dict() alone"
        ) from error
    finally:
        torch.serialization.add_safe_globals(known)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(own, Tensor) for own in found.values()):
        raise CheckpointError(f"{path}: holds no mapping from names to tensors; save model.state_dict()")
    return {str(name): own for name, own in found.items()}


def load_weights(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly. Raises CheckpointError that names the first differences."""
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where}: the weights do not fit the architecture: {text}") from error
