"""The built-in plugins' manifest; a third party's looks just like it."""

from __future__ import annotations

from collections.abc import Iterator

from autoshield_bench.contracts import AttackSpec, DatasetSpec, DefenseSpec, MetricSpec, ModelSpec
from autoshield_bench.hookspecs import hookimpl

CONTRACT = 1

_HERE = "autoshield_bench.builtin"


@hookimpl
def aubench_attacks() -> Iterator[AttackSpec]:
    """Yield the attacks."""
    yield AttackSpec(
        name="fgsm",
        factory=f"{_HERE}.attacks.fgsm:FGSM",
        summary="Fast gradient sign method: one step of the size of the ball.",
        norms=("linf", "l2"),
        reference="Goodfellow et al. 2015, arXiv:1412.6572",
    )
    yield AttackSpec(
        name="pgd",
        factory=f"{_HERE}.attacks.pgd:PGD",
        summary="Projected gradient descent with random start and restarts.",
        norms=("linf", "l2"),
        reference="Madry et al. 2018, arXiv:1706.06083",
    )
    yield AttackSpec(
        name="apgd",
        factory=f"{_HERE}.attacks.apgd:APGD",
        summary="Auto-PGD: momentum, a step size that halves itself, and a choice of losses.",
        norms=("linf", "l2"),
        reference="Croce and Hein 2020, arXiv:2003.01690",
    )
    yield AttackSpec(
        name="ddn",
        factory=f"{_HERE}.attacks.ddn:DDN",
        summary="Decoupled direction and norm: the nearest adversarial point in L2.",
        norms=("l2",),
        search="minimum-norm",
        reference="Rony et al. 2019, arXiv:1811.09600",
    )
    yield AttackSpec(
        name="square",
        factory=f"{_HERE}.attacks.square:Square",
        summary="Random search with squares that shrink, on scores alone.",
        norms=("linf", "l2"),
        needs="scores",
        linear_optimum=False,
        reference="Andriushchenko et al. 2020, arXiv:1912.00049",
    )
    yield AttackSpec(
        name="strong",
        factory=f"{_HERE}.attacks.strong:Strong",
        summary="A cascade of APGD with several losses and targets, and Square: as strong as it gets here.",
        norms=("linf", "l2"),
        strong=True,
        cascade=True,
        reference="after Croce and Hein 2020, arXiv:2003.01690",
    )
    yield AttackSpec(
        name="detector-pgd",
        factory=f"{_HERE}.attacks.detector:DetectorPGD",
        summary="To be misclassified and not flagged: the Lagrangian, selective and orthogonal PGD in a cascade.",
        norms=("linf", "l2"),
        strong=True,
        cascade=True,
        detector_aware=True,
        reference="Bryniarski et al. 2021, arXiv:2106.15023",
    )
    yield AttackSpec(
        name="noise",
        factory=f"{_HERE}.attacks.noise:Noise",
        summary="The best of a few random points at distance eps: the floor.",
        norms=("linf", "l2"),
        needs="scores",
        linear_optimum=False,
    )


@hookimpl
def aubench_defenses() -> Iterator[DefenseSpec]:
    """Yield the defenses."""
    yield DefenseSpec(
        name="none",
        factory=f"{_HERE}.defenses.chains:NoDefense",
        summary="The undefended classifier.",
    )
    yield DefenseSpec(
        name="autoencoder",
        factory=f"{_HERE}.defenses.autoencoder:Autoencoder",
        summary="Convolutional denoising autoencoder in front of the classifier, trained on noise alone.",
        trained_on="noise",
        reference="Vincent et al. 2008, doi:10.1145/1390156.1390294",
    )
    yield DefenseSpec(
        name="stacked-autoencoder",
        factory=f"{_HERE}.defenses.chains:StackedAutoencoder",
        summary="Two autoencoders in sequence, the second trained on the output of the first.",
        trained_on="noise",
    )
    yield DefenseSpec(
        name="chain",
        factory=f"{_HERE}.defenses.chains:ChainOf",
        summary="Any defenses in sequence, each fitted on the output of those before it.",
    )
    yield DefenseSpec(
        name="autoencoder-detector",
        factory=f"{_HERE}.defenses.detector:AutoencoderDetector",
        summary="An autoencoder that also scores how anomalous an image is: MagNet with one detector.",
        trained_on="noise",
        reference="Meng and Chen 2017, arXiv:1705.09064",
    )
    yield DefenseSpec(
        name="adversarial-training",
        factory=f"{_HERE}.defenses.adversarial:AdversarialTraining",
        summary="A network trained on PGD examples in place of the classifier; L-infinity alone.",
        needs_classifier=True,
        trained_on="attacks",
        reference="Madry et al. 2018, arXiv:1706.06083",
    )
    yield DefenseSpec(
        name="gaussian-blur",
        factory=f"{_HERE}.defenses.purifiers:GaussianBlur",
        summary="Gaussian blur, of a given width or matched to a given clean PSNR.",
        libraries=("torchvision",),
    )
    yield DefenseSpec(
        name="median",
        factory=f"{_HERE}.defenses.purifiers:Median",
        summary="Median over a window, of a given size or matched to a given clean PSNR.",
        differentiable=False,
        reference="Xu et al. 2018, arXiv:1704.01155",
    )
    yield DefenseSpec(
        name="bit-depth",
        factory=f"{_HERE}.defenses.purifiers:BitDepth",
        summary="Fewer bits per value, a given number or matched to a given clean PSNR.",
        differentiable=False,
        reference="Xu et al. 2018, arXiv:1704.01155",
    )
    yield DefenseSpec(
        name="jpeg",
        factory=f"{_HERE}.defenses.purifiers:Jpeg",
        summary="JPEG compression, of a given quality or matched to a given clean PSNR.",
        differentiable=False,
        reference="Dziugaite et al. 2016, arXiv:1608.00853",
        libraries=("pillow",),
    )


@hookimpl
def aubench_metrics() -> Iterator[MetricSpec]:
    """Yield the metrics."""
    yield MetricSpec(
        name="accuracy",
        factory=f"{_HERE}.metrics.predictions:Accuracy",
        summary="Share of images classified correctly: clean in a clean cell, robust in an attacked one.",
        looks_at="predictions",
        direction="higher",
        range=(0, 1),
    )
    yield MetricSpec(
        name="attack-success",
        factory=f"{_HERE}.metrics.predictions:AttackSuccess",
        summary="Share of images right when clean that are misclassified when attacked.",
        looks_at="predictions",
        direction="lower",
        range=(0, 1),
    )
    yield MetricSpec(
        name="mse",
        factory=f"{_HERE}.metrics.pixels:Mse",
        summary="Mean squared error over all values of an image.",
        looks_at="pair",
        direction="lower",
        range=(0, 1),
    )
    yield MetricSpec(
        name="psnr",
        factory=f"{_HERE}.metrics.pixels:Psnr",
        summary="Peak signal-to-noise ratio, from the mean MSE; undefined for identical images.",
        looks_at="pair",
        direction="higher",
        range=(0, None),
        unit="dB",
    )
    yield MetricSpec(
        name="ssim",
        factory=f"{_HERE}.metrics.ssim:Ssim",
        summary="Structural similarity, as scikit-image computes it.",
        looks_at="pair",
        direction="higher",
        range=(-1, 1),
        reference="Wang et al. 2004, doi:10.1109/TIP.2003.819861",
    )
    yield MetricSpec(
        name="lpips",
        factory=f"{_HERE}.metrics.perceptual:Lpips",
        summary="Learned perceptual similarity (LPIPS 0.1); needs the weights of a backbone.",
        looks_at="pair",
        direction="lower",
        range=(0, None),
        reference="Zhang et al. 2018, arXiv:1801.03924",
    )
    yield MetricSpec(
        name="linf",
        factory=f"{_HERE}.metrics.pixels:LinfDistance",
        summary="Largest absolute change of any value.",
        looks_at="pair",
        direction="lower",
        range=(0, 1),
    )
    yield MetricSpec(
        name="l2",
        factory=f"{_HERE}.metrics.pixels:L2Distance",
        summary="Euclidean length of the change.",
        looks_at="pair",
        direction="lower",
        range=(0, None),
    )


@hookimpl
def aubench_datasets() -> Iterator[DatasetSpec]:
    """Yield the data sets."""
    for name, module, summary in (
        ("mnist", "mnist:Mnist", "Handwritten digits, 60,000 / 10,000 of 28x28 (LeCun et al. 1998)."),
        ("fashion-mnist", "fashion_mnist:FashionMnist", "Articles of clothing, 60,000 / 10,000 of 28x28."),
        ("cifar10", "cifar10:Cifar10", "Photographs in ten classes, 50,000 / 10,000 of 32x32x3."),
        ("digits", "digits:Digits", "scikit-learn's 1,797 digits of 8x8; needs no network."),
    ):
        yield DatasetSpec(name=name, factory=f"{_HERE}.datasets.{module}", summary=summary)


@hookimpl
def aubench_models() -> Iterator[ModelSpec]:
    """Yield the classifiers."""
    yield ModelSpec(
        name="small-cnn",
        factory=f"{_HERE}.models.convolutional:SmallCNN",
        summary="Two convolutions and two fully connected layers.",
    )
    yield ModelSpec(
        name="deep-cnn",
        factory=f"{_HERE}.models.convolutional:DeepCNN",
        summary="Residual network of seven layers: the more complex classifier.",
    )
