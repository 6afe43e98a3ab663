"""What a classifier must do, one function per property; each raises ContractViolation with the numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoshield_bench.contracts import Model, ModelSpec, Recipe
from autoshield_bench.engine.pipeline import frozen
from autoshield_bench.engine.training import train_classifier
from autoshield_bench.seeding import generator, global_seed
from autoshield_bench.testing.checks import check
from autoshield_bench.testing.outcome import ContractViolation, NotJudged, must_not_raise, require
from autoshield_bench.testing.subject import Subject
from autoshield_bench.testing.world import IMAGES, SHAPE, World

OTHER_SHAPE, OTHER_CLASSES = (3, 16, 16), 7
TOLERANCE = 1e-4
"""Of logits in other batches: the order of float32 sums may show, nothing else."""


def _built(
    subject: Subject, shape: tuple[int, int, int] = SHAPE, classes: int | None = None, seed: int = 0
) -> nn.Module:
    maker: Model = subject.make()
    with global_seed("kit", seed):
        return maker.build(shape, World().classes if classes is None else classes)


def _logits(network: nn.Module, images: Tensor, classes: int) -> Tensor:
    with torch.no_grad():
        returned: object = frozen(network)(images)
    if not isinstance(returned, Tensor) or returned.shape != (len(images), classes):
        raise NotJudged("it does not return logits of the right shape (check 'logits')")
    return returned


@check(
    "model",
    "logits",
    meaning="For any image shape and number of classes, the network returns finite float32 logits [N, classes].",
    catches="28 x 28 pixels written into the first linear layer.",
    remedy="Size the first linear layer from `image_shape` and the last from `classes`, or pool to a fixed size with "
    "`nn.AdaptiveAvgPool2d`; return one float32 tensor and no tuple. A model whose weights exist for one shape alone "
    "declares `trained=True` and raises for any other in `build`.",
)
def logits(subject: Subject, world: World) -> None:
    """Check the output for two image shapes."""
    trained = isinstance(subject.spec, ModelSpec) and subject.spec.trained
    source = torch.Generator().manual_seed(37)
    for shape, classes in ((SHAPE, world.classes), (OTHER_SHAPE, OTHER_CLASSES)):
        with must_not_raise(f"{shape}: it"), torch.no_grad():
            try:
                network = _built(subject, shape, classes)
            except Exception:
                if trained:
                    continue  # weights that exist for one shape alone
                raise
            returned: object = frozen(network)(torch.rand((3, *shape), generator=source))
        if not isinstance(returned, Tensor):
            raise ContractViolation(f"{shape}: returned {type(returned).__name__} where logits belong")
        require(returned.shape == (3, classes), f"{shape}: shape {tuple(returned.shape)}, not {(3, classes)}")
        require(returned.dtype == torch.float32, f"{shape}: {returned.dtype}, not float32")
        require(torch.isfinite(returned).all(), f"{shape}: NaN or infinity among the logits")


@check(
    "model",
    "not-probabilities",
    meaning="The network returns logits, not probabilities.",
    catches="A softmax at the end: training and attacks then take a second one.",
    remedy="Remove the softmax or the sigmoid at the end, so that the network of `build` returns what went into it. "
    "Of a library's network that has one inside, return the logarithm of the output: `(p + 1e-12).log()`.",
)
def not_probabilities(subject: Subject, world: World) -> None:
    """Check that rows are not distributions."""
    rows = _logits(_built(subject), world.images, world.classes).double()
    distributions = int(((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() < 1e-3)).sum())
    require(distributions < len(rows), f"the outputs of all {len(rows)} images are non-negative and sum to 1")


@check(
    "model",
    "batch-invariant",
    meaning=f"In evaluation mode an image's logits do not depend on the batch, to {TOLERANCE:g}.",
    catches="Batch normalisation without running statistics.",
    remedy="Leave `track_running_stats=True` in batch normalisation, or take `nn.GroupNorm`. Normalise the input by "
    "constants, not by the mean of the batch.",
)
def batch_invariant(subject: Subject, world: World) -> None:
    """Check images one by one against all at once."""
    network = _built(subject)
    whole = _logits(network, world.images, world.classes)
    single = torch.cat([_logits(network, world.images[row : row + 1], world.classes) for row in range(IMAGES)])
    gap = float((whole - single).abs().max())
    require(gap <= TOLERANCE * max(1.0, float(whole.abs().max())), f"logits differ by up to {gap:.3g} between batches")


@check(
    "model",
    "build-seeded",
    meaning="Under one global seed two builds have the same weights, and they share none of them.",
    catches="Weights from numpy's unseeded generator, or a network kept at module level.",
    remedy="Draw weights from the global state of torch, which the host seeds before `build`, not from "
    "`numpy.random.default_rng()`. Make every layer anew in each call of `build`.",
)
def build_seeded(subject: Subject, _world: World) -> None:
    """Check two builds."""
    first, second = _built(subject), _built(subject)
    mine, other = first.state_dict(), second.state_dict()
    require(mine.keys() == other.keys(), "two builds have different tensors")
    differing = [name for name in mine if not torch.equal(mine[name], other[name])]
    require(not differing, f"two builds with one seed differ in {', '.join(differing[:3])}")
    storages = {tensor.data_ptr() for tensor in mine.values() if tensor.numel()}
    shared = [name for name, tensor in other.items() if tensor.numel() and tensor.data_ptr() in storages]
    require(not shared, f"two builds share the memory of {', '.join(shared[:3])}")


@check(
    "model",
    "input-gradient",
    meaning="A gradient reaches the image, finite and not zero.",
    catches="torch.no_grad() or .detach() in forward: attacks see nothing.",
    remedy="Keep the way from the image to the logits in torch, without `no_grad`, `detach`, `.data`, rounding or "
    "comparisons. Where the gradient is zero and not missing, look for layers that saturate, such as a sigmoid "
    "behind large weights.",
)
def input_gradient(subject: Subject, world: World) -> None:
    """Check the gradient with respect to the images."""
    network = frozen(_built(subject))
    point = world.images.requires_grad_()
    with torch.enable_grad():
        total = network(point)[:, 0].sum()
    require(total.requires_grad, "no gradient reaches the images")
    (gradient,) = torch.autograd.grad(total, point, allow_unused=True)
    if gradient is None:
        raise ContractViolation("no gradient reaches the images")
    require(torch.isfinite(gradient).all(), "the gradient holds NaN or infinity")
    flat = int((gradient == 0).flatten(1).all(1).sum())
    require(flat <= IMAGES // 2, f"the gradient is zero in {flat} of {IMAGES} images")


@check(
    "model",
    "trainable",
    meaning="The harness's recipe lowers the loss; a model that comes trained has a fingerprint instead.",
    catches="Weights that were frozen when they were built, or kept where no optimiser finds them.",
    remedy="Keep weights as `nn.Parameter` in registered layers (`nn.ModuleList`, not a list), with `requires_grad` "
    "as it is, and give `Recipe` a learning rate at which the loss falls. A model that brings its weights declares "
    "`trained=True` and returns their hash from `fingerprint()`.",
)
def trainable(subject: Subject, world: World) -> None:
    """Check the training loss before and after a few steps."""
    maker: Model = subject.make()
    if isinstance(subject.spec, ModelSpec) and subject.spec.trained:
        require(maker.fingerprint(), "it comes trained, and its fingerprint is empty")
        return
    network = _built(subject)
    images, labels = world.part("fitting")
    require(any(weight.requires_grad for weight in network.parameters()), "it has no trainable parameters")
    recipe = maker.recipe()
    short = Recipe(epochs=8, batch_size=16, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def loss() -> float:
        network.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network(images), labels))

    before = loss()
    with global_seed("kit", "train"):
        train_classifier(network, images, labels, short, generator("kit", "order"), world.device, lambda *_: None)
    after = loss()
    require(after < before, f"24 steps took the loss on the training images from {before:.4g} to {after:.4g}")


@check(
    "model",
    "state-round-trip",
    meaning="A second build that loads the state of the first gives the same logits.",
    catches="A tensor that decides the output and is neither parameter nor buffer.",
    remedy='Register the tensor: `nn.Parameter` for what is learnt, `self.register_buffer("mean", mean)` for what is '
    "not, with `persistent=True` as it is by default.",
)
def state_round_trip(subject: Subject, world: World) -> None:
    """Check logits after the weights moved to a build from another seed."""
    first, second = _built(subject, seed=1), _built(subject, seed=2)
    second.load_state_dict(first.state_dict(), strict=True)
    expected, found = (_logits(network, world.images, world.classes) for network in (first, second))
    differing = int((expected != found).any(1).sum())
    require(differing == 0, f"the logits of {differing} of {IMAGES} images differ after loading the state")
