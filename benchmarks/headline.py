"""The headline suite beside the same work scripted by hand: a plain PyTorch loop, and tables with ART and torchattacks.

``python benchmarks/headline.py`` runs, in turn and in processes of their own,

- the training of the suite's three networks by ``aubench run``, and by a loop of the same recipe;
- attacks and scoring by ``aubench run`` on those networks, and the same table with the attacks of ART and of
  torchattacks: gray-box examples crafted once, the same metrics on the same pairs, by NumPy, scikit-image and lpips;
- the evidence that ``aubench run`` takes on top, which nothing by hand does;
- ``aubench run`` again, with nothing left to do.

``--quick`` sees on small images that everything runs. ``--images`` takes a part of the work: so many test images, and
the suite's subsets in proportion. Needs both libraries: ``pip install . ./plugins/*/``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

SUITE = Path(__file__).parent.parent / "suites" / "mnist.toml"
EPS, STEPS, BATCH = 0.2, 40, 250
LIBRARIES = ("art", "torchattacks")


@dataclasses.dataclass(frozen=True)
class Work:
    """How much of the suite is done: by default all of it."""

    dataset: str = "mnist"
    images: int = 10_000
    epochs: tuple[int, int] = (5, 2)
    """Of the classifier and of each autoencoder."""

    @property
    def white(self) -> int:
        """Images that white-box attacks are given."""
        return self.images // 10

    @property
    def perceptual(self) -> int:
        """Images that LPIPS is taken on."""
        return self.images // 20

    def suite(self, scratch: Path) -> Path:
        """Write the suite of this much work; return where it is."""
        text = SUITE.read_text(encoding="utf-8")
        model, each = (f"{{ epochs = {count} }}" for count in self.epochs)
        for old, new in {
            'use = "mnist"': f'use = "{self.dataset}"',
            "images = 1000": f"images = {self.white}",
            "{ images = 500 }": f"{{ images = {self.perceptual} }}",
            'use = "small-cnn"': f'use = "small-cnn"\nparams = {model}',
            'use = "autoencoder"': f'use = "autoencoder"\nparams = {each}',
            'use = "stacked-autoencoder"': (
                f'use = "stacked-autoencoder"\nparams = {{ first = {each}, second = {each} }}'
            ),
        }.items():
            if old not in text:
                raise SystemExit(f"{SUITE}: has no {old}, which this script puts something else for")
            text = text.replace(old, new)
        path = scratch / "headline.toml"
        path.write_text(text, encoding="utf-8")
        return path


QUICK = Work(dataset="digits", images=300, epochs=(1, 1))
"""What shows that everything runs, and nothing else."""


def aubench(directory: Path, suite: Path, *options: str) -> tuple[float, float]:
    """Run a suite in a directory of its own; return seconds, and the peak of memory in GiB."""
    command = [sys.executable, "-P", "-m", "autoshield_bench", "run", str(suite), "--jobs", "1", "--quiet"]
    environment = {**os.environ, "AUBENCH_CACHE": str(directory / "cache")}
    before = time.perf_counter()
    with subprocess.Popen(
        [*command, "--results-dir", str(directory / "results"), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said)
    return time.perf_counter() - before, usage.ru_maxrss / 2**20


def records(directory: Path) -> dict[str, dict[str, Any]]:
    """Return what was recorded, by defense and attack, such as ``none/pgd-gray-box``."""
    found = {}
    for path in (directory / "results").glob("*/cells/*/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[f"{path.parent.name}/{path.stem.rpartition('-')[0]}"] = record
    return found


def training_seconds(directory: Path) -> float:
    """Return what training took, by the journal."""
    lines = [
        json.loads(line)
        for path in (directory / "results").glob("*/journal/*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return sum(line["seconds"] for line in lines if line.get("stage") in ("train", "fit"))


def by_hand(task: str, directory: Path, work: Work) -> Any:
    """Run a task of this script in another process; return its answer, with the seconds that the process took."""
    amount = json.dumps(dataclasses.asdict(work))
    command = [sys.executable, "-P", __file__, "--task", task, "--directory", str(directory), "--work", amount]
    before = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": time.perf_counter() - before} | json.loads(done.stdout.splitlines()[-1])


# By hand ----------------------------------------------------------------------------------------------------------


def images_of(dataset: str, part: str) -> tuple[Any, Any]:
    """Return images ``[N, 1, H, W]`` in [0, 1] and labels, as tensors."""
    import torch

    from autoshield_bench import places
    from autoshield_bench.builtin.datasets.digits import Digits
    from autoshield_bench.builtin.datasets.mnist import Mnist

    split = {"digits": Digits, "mnist": Mnist}[dataset]().load(part, places.data_dir())
    images = torch.from_numpy(split.images)
    return (images if images.is_floating_point() else images.float() / 255), torch.from_numpy(split.labels).long()


def in_torch(network: Any) -> Any:
    """Return a network of torch's own layers, as somebody else would have written it."""
    from torch import nn

    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            kinds = [kind for kind in (nn.Conv2d, nn.ConvTranspose2d) if isinstance(layer, kind)]
            if kinds and type(layer) is not kinds[0]:
                args = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
                plain = kinds[0](*args)
                plain.load_state_dict(layer.state_dict())
                setattr(module, name, plain)
    return network


def classifier(image: Any) -> Any:
    """Return the untrained classifier of the suite."""
    from autoshield_bench.builtin.models.networks import small_cnn

    return in_torch(small_cnn(*image.shape, 10, 24))


def purifier() -> Any:
    """Return the untrained autoencoder of the suite."""
    from autoshield_bench.builtin.defenses.networks import build

    return in_torch(build("conv", 1, 32))


def training(_directory: Path, work: Work) -> dict[str, float]:
    """Train the three networks in a plain loop; return seconds and what they reach on test images."""
    import torch
    from torch.nn import functional

    from autoshield_bench.builtin.defenses.noise import corrupt

    images, labels = images_of(work.dataset, "train")
    images, labels = images[: len(images) * 11 // 12], labels[: len(labels) * 11 // 12]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    before = time.perf_counter()

    def train(network: Any, count: int, rate: float, decay: float, loss_of: Callable[[Any], Any]) -> Any:
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
        steps = count * -(-len(images) // 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
        for _epoch in range(count):
            for rows in torch.randperm(len(images), generator=generator).split(128):
                loss = loss_of(rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        return network.eval()

    model = classifier(images[0])
    train(model, work.epochs[0], 2e-3, 0.05, lambda rows: functional.cross_entropy(model(images[rows]), labels[rows]))

    def fitted(upstream: Callable[[Any], Any]) -> Any:
        network = purifier()

        def loss_of(rows: Any) -> Any:
            clean = images[rows]
            with torch.no_grad():
                noisy = upstream(corrupt(clean, "smooth-sign", 0.1, 0.45, generator))
            return functional.binary_cross_entropy_with_logits(network.logits(noisy), clean)

        return train(network, work.epochs[1], 3e-3, 0.0, loss_of)

    first = fitted(lambda x: x)
    second = fitted(first)
    seconds = time.perf_counter() - before
    shown, truth = images_of(work.dataset, "test")
    reached = {"seconds": seconds}
    with torch.no_grad():
        for name, stages in (("none", ()), ("autoencoder", (first,)), ("stacked-autoencoder", (first, second))):
            x = shown
            for stage in stages:
                x = stage(x)
            reached[f"{name}/clean"] = float((model(x).argmax(1) == truth).float().mean())
    return reached


def distances(one: Any, other: Any, perceptual_images: int) -> dict[str, float]:
    """Return the means of the suite's metrics of pairs of images; LPIPS where its weights are at hand."""
    import numpy as np
    import torch
    from skimage.metrics import structural_similarity
    from torch.nn.functional import interpolate

    difference = (one - other).reshape(len(one), -1)
    squares = (difference.astype(np.float64) ** 2).mean(1)
    with np.errstate(divide="ignore"):
        found = {"mse": squares, "psnr": -10 * np.log10(squares)}
    found["linf"], found["l2"] = np.abs(difference).max(1), np.linalg.norm(difference, axis=1)
    found["ssim"] = np.array(
        [structural_similarity(a[0], b[0], data_range=1.0) for a, b in zip(one, other, strict=True)]
    )
    network = perceptual()
    if network is not None:
        pairs = [torch.from_numpy(own[:perceptual_images]).expand(-1, 3, -1, -1) for own in (one, other)]
        batches = zip(*(interpolate(own, size=64, mode="bilinear").split(BATCH) for own in pairs), strict=True)
        with torch.no_grad():
            found["lpips"] = np.concatenate([network(*pair, normalize=True).numpy() for pair in batches])
    return {name: float(values.mean()) for name, values in found.items()}


@functools.cache
def perceptual() -> Any:
    """Return the network of lpips as the package has it, with the suite's weights; None where they are not at hand."""
    import lpips

    from autoshield_bench.builtin.metrics import backbone_weights

    weights = backbone_weights.BACKBONES["squeeze"]
    path = backbone_weights.find(weights)
    if path is None:
        return None
    features = backbone_weights.load_features(weights, path)
    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    network.net.load_state_dict({name: features[name.partition(".")[2]] for name in network.net.state_dict()})
    return network.eval().requires_grad_(requires_grad=False)


Generate = Callable[[Any, Any], Any]
"""Of images and labels, adversarial images; all arrays."""


def attacks_of_art(network: Any, shape: tuple[int, ...]) -> dict[str, Generate]:
    """Return FGSM and PGD as ART has them, for images ``[C, H, W]``."""
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    estimator = PyTorchClassifier(
        network, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=10, clip_values=(0.0, 1.0)
    )
    pgd = ProjectedGradientDescentPyTorch(
        estimator,
        eps=EPS,
        eps_step=2.5 * EPS / STEPS,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=BATCH,
        verbose=False,
    )
    return {"fgsm": FastGradientMethod(estimator, eps=EPS, batch_size=BATCH).generate, "pgd": pgd.generate}


def attacks_of_torchattacks(network: Any, _shape: tuple[int, ...]) -> dict[str, Generate]:
    """Return FGSM and PGD as torchattacks has them."""
    import torch
    import torchattacks

    def generate(attack: Any) -> Generate:
        def attacked(images: Any, labels: Any) -> Any:
            rows = zip(torch.from_numpy(images).split(BATCH), torch.from_numpy(labels).split(BATCH), strict=True)
            return torch.cat([attack(x, truth) for x, truth in rows]).numpy()

        return attacked

    pgd = torchattacks.PGD(network, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS)
    return {"fgsm": generate(torchattacks.FGSM(network, eps=EPS)), "pgd": generate(pgd)}


def table_by(library: str, directory: Path, work: Work) -> dict[str, float]:
    """Make the table with a library's attacks; return the accuracies."""
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from torch import nn

    from autoshield_bench.engine.data import stratified_order

    attacks = {"art": attacks_of_art, "torchattacks": attacks_of_torchattacks}[library]
    images, labels = images_of(work.dataset, "test")
    # The same images as the suite's.
    order = stratified_order(labels.numpy(), "test")
    shown = np.sort(order[: work.images])
    subset = np.flatnonzero(np.isin(shown, order[: work.white]))
    images, labels = images[shown], labels[shown]
    facts = records(directory)["stacked-autoencoder/clean"]["facts"]
    keys = [facts["model"]["key"], *[stage["key"] for stage in facts["defense"]]]
    networks = [classifier(images[0]), purifier(), purifier()]
    for network, key in zip(networks, keys, strict=True):
        (path,) = (directory / "cache").glob(f"*/*/{key}/*.safetensors")
        network.load_state_dict({name: value for name, value in load_file(path).items() if name != "channels"})
        network.eval()
    model, *stages = networks
    clean, truth = images.numpy(), labels.numpy()

    def through(parts: Any, x: Any) -> Any:
        with torch.no_grad():
            for part in parts:
                x = np.concatenate([part(rows).numpy() for rows in torch.from_numpy(x).split(BATCH)])
        return x

    few, few_labels = clean[subset], truth[subset]
    shape = clean.shape[1:]
    gray = {name: generate(clean, truth) for name, generate in attacks(copy.deepcopy(model), shape).items()}
    apart = functools.partial(distances, perceptual_images=work.perceptual)
    between = {name: apart(clean, own) for name, own in gray.items()}
    table: dict[str, Any] = {}
    pipelines = {"none": stages[:0], "autoencoder": stages[:1], "stacked-autoencoder": stages}
    for defense, parts in pipelines.items():
        whole = nn.Sequential(*copy.deepcopy([*parts, model])).eval()
        white = {name: generate(few, few_labels) for name, generate in attacks(whole, shape).items()}
        scored = {"clean": (clean, truth, None)}
        scored |= {f"{name}-gray-box": (own, truth, between[name]) for name, own in gray.items()}
        scored |= {f"{name}-white-box": (own, few_labels, apart(few, own)) for name, own in white.items()}
        right = None
        for name, (x, wanted, moved) in scored.items():
            hit = through([whole], x).argmax(1) == wanted
            right = hit if right is None else right
            rows = subset if name.endswith("white-box") else slice(None)
            table[f"{defense}/{name}"] = {
                "accuracy": float(hit.mean()),
                "attack-success": float((right[rows] & ~hit).sum() / right[rows].sum()),
                "clean-adversarial": moved,
                "clean-purified": apart(clean[rows], through(parts, x)) if parts else None,
            }
    return {name: own["accuracy"] for name, own in table.items()}


# The whole --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Measured:
    """What some rounds took, and what they found."""

    times: dict[tuple[str, str], list[tuple[float, float]]]
    """By what, and by whom beside us: seconds of ours and of theirs, round by round."""

    evidence: list[float]
    warm: list[float]
    peak: float
    """GiB of attacks and scoring."""

    peak_of_a_tenth: float
    """The same on a tenth of the images."""

    found: dict[str, dict[str, Any]]
    tables: dict[str, dict[str, float]]

    def ratio(self, what: str, by: str) -> float:
        """Return by how much ours is faster: the median over rounds."""
        return statistics.median(two / one for one, two in self.times[what, by])


def measure(work: Work, rounds: int, libraries: tuple[str, ...] = LIBRARIES, *, in_short: bool = False) -> Measured:
    """Do this much work so many times, side by side; in short, train once, and leave out the tenth of the images."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    evidence, warm, peak, tenth = [], [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        suite = work.suite(scratch)
        limit = ("--limit", str(work.images))
        for number in range(rounds):
            if number == 0 or not in_short:
                trained = scratch / f"trained-{number}"
                aubench(trained, suite, "--only", "*/clean/*", *limit)
                tables = {"loop": by_hand("training", scratch, work)}
                both = training_seconds(trained), tables["loop"].pop("seconds")
                times.setdefault(("training", "loop"), []).append(both)
            ours, part = scratch / f"run-{number}", scratch / f"part-{number}"
            for directory in (ours, part):
                for stage in ("train", "fit"):  # networks and nothing else
                    shutil.copytree(trained / "cache" / stage, directory / "cache" / stage)
            if not in_short:
                limit_of_a_tenth = ("--limit", str(work.images // 10))
                tenth = max(tenth, aubench(part, suite, "--evidence", "off", *limit_of_a_tenth)[1])
            seconds, memory = aubench(ours, suite, "--evidence", "off", *limit)
            peak = max(peak, memory)
            for library in libraries:
                tables[library] = by_hand(library, ours, work)
                both = seconds, tables[library].pop("seconds")
                times.setdefault(("attacks and scoring", library), []).append(both)
            evidence.append(aubench(ours, suite, *limit)[0])
            warm.append(aubench(ours, suite, *limit)[0])
            found = records(ours)
    return Measured(times, evidence, warm, peak, tenth, found, tables)


def report(measured: Measured, work: Work) -> str:
    """Return tables of times and of accuracies."""
    rows = []
    for (what, by), pairs in measured.times.items():
        own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append([what, f"{own:.1f}", by, f"{other:.1f}", f"{measured.ratio(what, by):.2f}"])
    rows.append(["evidence on top", f"{statistics.median(measured.evidence):.1f}", "", "", ""])
    rows.append(["again, nothing left to do", f"{statistics.median(measured.warm):.2f}", "", "", ""])
    headers = ["what", "aubench, s", "by hand", "s", "ratio"]
    tenth = f", {measured.peak_of_a_tenth:.2f} on a tenth of the images" if measured.peak_of_a_tenth else ""
    lines = [
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        "",
        f"medians of {len(measured.warm)} rounds (training: {len(measured.times['training', 'loop'])}) on "
        f"{work.images:,} images; peak memory of attacks and scoring {measured.peak:.2f} GiB{tenth}",
        "",
    ]
    accuracies = []
    for name, record in sorted(measured.found.items()):
        own = record["metrics"]["accuracy"]["pairs"]["predictions"]
        others = [f"{table[name]:.4f}" if name in table else "" for table in measured.tables.values()]
        accuracies.append([name, str(own["n"]), f"{own['value']:.4f}", *others])
    headers = ["accuracy", "n", "aubench", *measured.tables]
    lines.append(tabulate(accuracies, headers, tablefmt="github", disable_numparse=True))
    return "\n".join(lines)


def main() -> None:
    """Measure, or do one task by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean nothing")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--images", type=int, default=Work.images, help="a part of the work: so many test images")
    parser.add_argument("--by", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="whose table is made by hand")
    parser.add_argument("--task", choices=["training", *LIBRARIES], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        work = Work(**json.loads(options.work))
        do = training if options.task == "training" else functools.partial(table_by, options.task)
        print(json.dumps(do(options.directory, work)))
        return
    work = QUICK if options.quick else Work(images=options.images)
    print(report(measure(work, options.rounds, tuple(options.by)), work))


if __name__ == "__main__":
    main()
