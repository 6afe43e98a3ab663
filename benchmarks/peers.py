"""Speed of attacks, side by side: this package, foolbox, torchattacks, ART, and a plain PyTorch loop.

``python benchmarks/peers.py`` trains the small classifier once and hands its weights, the images and the settings to
one process per competitor, each started as its users start it. The processes then run in turn, round after round, so
that whatever else the machine does meets them all. It prints medians, ratios of the rounds, and the robust accuracy,
so that no one is fast by being weak. ``--quick`` sees only that everything runs.

Other libraries are given the network in torch's own layers, as their users write it, and for FGSM and PGD once more in
the layers of this package's small classifier, which make them faster too. The loop has the latter: what it is ahead by
is what the harness costs.

Needs foolbox, torchattacks and adversarial-robustness-toolbox: ``pip install . ./plugins/*/``. adv-lib takes part where
it is installed; what it requires builds only with an older setuptools (``PIP_CONSTRAINT`` naming a file that says
``setuptools<81``).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional

EPS = 0.2
NEEDED = ("foolbox", "torchattacks", "art")
LIBRARIES = (*NEEDED, *(["adv_lib"] if importlib.util.find_spec("adv_lib") else []))
OURS = ", our layers"
COMPETITORS = ("aubench", *LIBRARIES, *(name + OURS for name in LIBRARIES), "loop")
VARIANTS = ("pgd, gradients in bf16", "pgd, fallen images leave")
"""Of PGD in this package; compared with the others' PGD."""
ATTACKS = ("fgsm", "pgd", "apgd", "square", *VARIANTS)
SETTINGS = {"threads": 2, "rounds": 5, "images": 500, "steps": 40, "queries": 300, "training_steps": 1000}
QUICK = SETTINGS | {"rounds": 1, "images": 20, "steps": 3, "queries": 5, "training_steps": 20}
"""What shows that everything runs, and nothing else."""


class Case:
    """The network, the images and the settings that all competitors share."""

    def __init__(self, directory: Path, *, ours: bool = True) -> None:
        from safetensors.torch import load_file

        from autoshield_bench.builtin.models.networks import small_cnn

        self.settings = json.loads((directory / "settings.json").read_text())
        tensors = load_file(directory / "case.safetensors")
        self.images, self.labels = tensors.pop("images"), tensors.pop("labels")
        channels, height, width = self.images.shape[1:]
        self.network = small_cnn(channels, height, width, 10, 24).to(memory_format=torch.channels_last)
        if not ours:
            self.network = nn.Sequential(*[layer_of_torch(layer) for layer in self.network])
            self.network.to(memory_format=torch.channels_last)
        self.network.load_state_dict(tensors)
        self.network.eval().requires_grad_(requires_grad=False)
        self.steps, self.queries = self.settings["steps"], self.settings["queries"]
        self.step_size = 2.5 * EPS / self.steps

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return images and labels, 250 at a time."""
        return list(zip(self.images.split(250), self.labels.split(250), strict=True))

    def robust(self, adversarial: Tensor) -> float:
        """Return the accuracy on adversarial images, which must lie in the ball."""
        adversarial = adversarial.detach()
        assert float((adversarial - self.images).abs().max()) <= EPS + 1e-6
        with torch.no_grad():
            return float((self.network(adversarial).argmax(1) == self.labels).float().mean())


Run = Callable[[Tensor, Tensor], Tensor]


def of_aubench(case: Case) -> dict[str, Run]:
    """Return the built-in attacks, on the harness's own pipeline and target."""
    from autoshield_bench.builtin.attacks.apgd import APGD
    from autoshield_bench.builtin.attacks.fgsm import FGSM
    from autoshield_bench.builtin.attacks.pgd import PGD
    from autoshield_bench.builtin.attacks.square import Square
    from autoshield_bench.contracts import Attack, AttackRequest, Precision, ThreatModel
    from autoshield_bench.engine.access import GradientTarget
    from autoshield_bench.engine.guard import check_adversarial
    from autoshield_bench.engine.pipeline import PassCounter, Pipeline
    from autoshield_bench.seeding import ImageRandom

    threat = ThreatModel(norm="linf", eps=EPS)

    def run(attack: Attack, *, stop: bool = False, precision: Precision = "float32") -> Run:
        def attacked(images: Tensor, labels: Tensor) -> Tensor:
            rng = ImageRandom(0, range(len(images)))
            pipeline = Pipeline(case.network, (), PassCounter())
            target = GradientTarget(pipeline, rng.child("target"), classes=10, eot=1, precision=precision)
            request = AttackRequest(
                images=images.clone(), labels=labels, threat=threat, target=target, rng=rng, stop_on_success=stop
            )
            return check_adversarial(attack.run(request), images, threat, "a benchmark")

        return attacked

    return {
        "fgsm": run(FGSM()),
        "pgd": run(PGD(steps=case.steps)),
        "apgd": run(APGD(steps=case.steps)),
        "square": run(Square(queries=case.queries), stop=True),
        VARIANTS[0]: run(PGD(steps=case.steps), precision="bf16"),
        VARIANTS[1]: run(PGD(steps=case.steps), stop=True),
    }


def of_foolbox(case: Case) -> dict[str, Run]:
    """Return foolbox's attacks; it has neither APGD nor Square."""
    import foolbox

    model = foolbox.PyTorchModel(case.network, bounds=(0, 1), device="cpu")

    def run(attack: foolbox.Attack) -> Run:
        return lambda images, labels: attack(model, images, labels, epsilons=EPS)[1]

    pgd = foolbox.attacks.LinfPGD(steps=case.steps, abs_stepsize=case.step_size)
    return {"fgsm": run(foolbox.attacks.LinfFastGradientAttack(random_start=False)), "pgd": run(pgd)}


def of_torchattacks(case: Case) -> dict[str, Run]:
    """Return torchattacks' attacks."""
    import torchattacks

    def run(attack: torchattacks.attack.Attack) -> Run:
        return attack.__call__

    network = case.network
    return {
        "fgsm": run(torchattacks.FGSM(network, eps=EPS)),
        "pgd": run(torchattacks.PGD(network, eps=EPS, alpha=case.step_size, steps=case.steps)),
        "apgd": run(torchattacks.APGD(network, eps=EPS, steps=case.steps)),
        "square": run(torchattacks.Square(network, eps=EPS, n_queries=case.queries)),
    }


def of_art(case: Case) -> dict[str, Run]:
    """Return ART's attacks."""
    import numpy as np
    from art.attacks.evasion import (
        AutoProjectedGradientDescent,
        FastGradientMethod,
        ProjectedGradientDescentPyTorch,
        SquareAttack,
    )
    from art.estimators.classification import PyTorchClassifier

    shape = tuple(case.images.shape[1:])
    estimator = PyTorchClassifier(
        case.network, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=10, clip_values=(0.0, 1.0)
    )

    def run(attack: object) -> Run:
        def attacked(images: Tensor, labels: Tensor) -> Tensor:
            found = attack.generate(images.numpy(), functional.one_hot(labels, 10).numpy().astype(np.float32))  # type: ignore[attr-defined]
            return torch.from_numpy(found)

        return attacked

    own = {"batch_size": 250, "verbose": False}
    return {
        "fgsm": run(FastGradientMethod(estimator, eps=EPS, batch_size=250)),
        "pgd": run(
            ProjectedGradientDescentPyTorch(
                estimator, eps=EPS, eps_step=case.step_size, max_iter=case.steps, num_random_init=1, **own
            )
        ),
        "apgd": run(
            AutoProjectedGradientDescent(
                estimator, eps=EPS, eps_step=2 * EPS, max_iter=case.steps, nb_random_init=1, **own
            )
        ),
        "square": run(SquareAttack(estimator, eps=EPS, max_iter=case.queries, p_init=0.8, nb_restarts=1, **own)),
    }


def of_adv_lib(case: Case) -> dict[str, Run]:
    """Return adv-lib's attacks; it has neither FGSM nor Square."""
    from adv_lib.attacks import apgd, pgd_linf

    def pgd(images: Tensor, labels: Tensor) -> Tensor:
        return pgd_linf(case.network, images, labels, EPS, steps=case.steps, absolute_step_size=case.step_size)

    def with_apgd(images: Tensor, labels: Tensor) -> Tensor:
        return apgd(case.network, images, labels, EPS, float("inf"), n_iter=case.steps, loss_function="ce")

    return {"pgd": pgd, "apgd": with_apgd}


def of_loop(case: Case) -> dict[str, Run]:
    """Return the shortest loop that does the work: frozen weights, channels last, nothing kept but the last point."""

    def climb(images: Tensor, labels: Tensor, x: Tensor, step_size: float, steps: int) -> Tensor:
        low, high = (images - EPS).clamp(min=0), (images + EPS).clamp(max=1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            loss = functional.cross_entropy(case.network(x), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = torch.minimum(torch.maximum(x.detach() + step_size * gradient.sign(), low), high)
        return x

    def pgd(images: Tensor, labels: Tensor) -> Tensor:
        start = (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        return climb(images, labels, start, case.step_size, case.steps)

    return {"fgsm": lambda images, labels: climb(images, labels, images, EPS, 1), "pgd": pgd}


def serve(name: str, directory: Path) -> None:
    """Run what the parent asks for, one attack per line; answer with seconds and robust accuracy."""
    torch.manual_seed(0)
    library = name.removesuffix(OURS)
    case = Case(directory, ours=library not in LIBRARIES or name.endswith(OURS))
    torch.set_num_threads(case.settings["threads"])
    own = globals()[f"of_{library}"](case)
    if name.endswith(OURS):
        own = {attack: own[attack] for attack in ("fgsm", "pgd") if attack in own}
    out, sys.stdout = sys.stdout, sys.stderr
    for line in itertools.chain([""], sys.stdin):
        attack, answer = line.strip(), list(own)
        if attack:
            before = time.perf_counter()
            found = torch.cat([own[attack](images, labels) for images, labels in case.batches()])
            answer = [time.perf_counter() - before, case.robust(found)]
        print(json.dumps(answer), file=out, flush=True)


_AS_AUBENCH = [
    "-c",
    "import runpy, sys; from autoshield_bench.engine.process import prepare_process; prepare_process(); "
    "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')",
]
"""What the command line does before it imports torch."""


class Competitor:
    """A process of one competitor."""

    def __init__(self, name: str, directory: Path) -> None:
        start = _AS_AUBENCH if name == "aubench" else []
        command = [sys.executable, "-P", *start, __file__, "--serve", name, "--case", str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.attacks: list[str] = self._answer()
        self.seconds: dict[str, list[float]] = {attack: [] for attack in self.attacks}
        self.robust: dict[str, float] = {}

    def run(self, attack: str, *, count: bool) -> None:
        """Run an attack once; the first time is not counted."""
        assert self._process.stdin
        self._process.stdin.write(attack + "\n")
        self._process.stdin.flush()
        seconds, self.robust[attack] = self._answer()
        if count:
            self.seconds[attack].append(seconds)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> list:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a competitor's process ended: its message stands above")
        return json.loads(line)


def prepare(directory: Path, settings: dict) -> None:
    """Train the classifier for two epochs, and write what all share."""
    from safetensors.torch import save_file

    from autoshield_bench import places
    from autoshield_bench.builtin.datasets.mnist import Mnist
    from autoshield_bench.builtin.models.networks import small_cnn

    torch.manual_seed(0)
    train, test = (Mnist().load(split, places.data_dir()) for split in ("train", "test"))
    images, labels = torch.from_numpy(train.images).float() / 255, torch.from_numpy(train.labels).long()
    network = small_cnn(1, 28, 28, 10, 24).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for rows in torch.cat([torch.randperm(len(images)) for _ in range(2)]).split(128)[: settings["training_steps"]]:
        optimiser.zero_grad()
        functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
    shown = slice(settings["images"])
    tensors = {
        "images": torch.from_numpy(test.images[shown]).float() / 255,
        "labels": torch.from_numpy(test.labels[shown]).long(),
    }
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file({**state, **tensors}, directory / "case.safetensors")
    (directory / "settings.json").write_text(json.dumps(settings))


def limits(case: Case) -> tuple[float, float, float]:
    """Return GFLOP/s of a large matrix product, GB/s of a copy, and MFLOP of one step on one image."""
    from torch.utils.flop_counter import FlopCounterMode

    def median(action: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            before = time.perf_counter()
            action()
            times.append(time.perf_counter() - before)
        return statistics.median(times[1:])

    size = 2048
    one, other, product = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    rate = 2 * size**3 / median(lambda: torch.mm(one, other, out=product)) / 1e9
    long, copied = torch.rand(64 * 2**20), torch.empty(64 * 2**20)
    bandwidth = 2 * long.numel() * 4 / median(lambda: copied.copy_(long)) / 1e9
    # Counted on torch's own layers, forward and the gradient of the images: what the mathematics asks for.
    plain = case.network
    x = case.images[:10].clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(plain(x), case.labels[:10], reduction="sum").backward()
    return rate, bandwidth, counter.get_total_flops() / 10 / 1e6


def layer_of_torch(layer: nn.Module) -> nn.Module:
    """Return a convolution of torch's for one of our own, else the layer itself."""
    if not isinstance(layer, nn.Conv2d):
        return layer
    return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)


@dataclass(frozen=True)
class Row:
    """An attack by a competitor, beside ours."""

    attack: str
    by: str
    speed: float
    """Images times steps (of Square: queries) per second: median over rounds."""

    ratio: float
    """By how much ours is faster: median over rounds."""

    spread: tuple[float, float]
    """The same in the round that was worst for us, and in the best."""

    robust: float
    share: float | None
    """Of the machine's rate in matrix products; for PGD in float32."""


def measure(
    settings: dict[str, int], names: tuple[str, ...] = COMPETITORS, attacks: tuple[str, ...] = ATTACKS
) -> tuple[list[Row], str]:
    """Run competitors in turn, ours among them; return what was found, and a sentence on the machine."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; pip install . ./plugins/*/")
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory, settings)
        competitors = {competitor: Competitor(competitor, directory) for competitor in names}
        for number in range(settings["rounds"] + 1):
            for attack in attacks:
                for competitor in competitors.values():
                    if attack in competitor.attacks:
                        competitor.run(attack, count=number > 0)
        for competitor in competitors.values():
            competitor.close()
        case = Case(directory, ours=False)
    ours, work = competitors["aubench"], {"fgsm": 1, "square": case.queries}
    rate, bandwidth, flops = limits(case)
    rows = []
    for attack in attacks:
        compared = "pgd" if attack in VARIANTS else attack
        steps = len(case.images) * work.get(compared, case.steps)
        for name, other in competitors.items():
            known = attack if name == "aubench" else compared
            if known in other.seconds:
                ratios = [b / a for a, b in zip(ours.seconds[attack], other.seconds[known], strict=True)]
                speed = steps / statistics.median(other.seconds[known])
                share = speed * flops / 1e3 / rate if known == "pgd" else None
                spread = min(ratios), max(ratios)
                rows.append(Row(attack, name, speed, statistics.median(ratios), spread, other.robust[known], share))
    machine = (
        f"{len(case.images)} images, {case.steps} steps, {case.queries} queries, {settings['threads']} threads, "
        f"medians of {settings['rounds']} rounds in turn. "
        f"This machine: {rate:.0f} GFLOP/s in float32 matrix products, {bandwidth:.1f} GB/s copied; "
        f"a step on an image takes {flops:.2f} MFLOP, forward and back."
    )
    return rows, machine


def report(rows: list[Row], machine: str) -> str:
    """Return a table per attack, and what the machine could do."""
    headers = ["attack", "by", "images x steps / s", "aubench is faster by", "robust accuracy", "of the matrix rate"]
    cells = []
    for row in rows:
        share = "" if row.share is None else f"{row.share:.0%}"
        cells.append([row.attack, row.by, f"{row.speed:,.0f}", f"{row.ratio:.2f}", f"{row.robust:.3f}", share])
    return f"{tabulate(cells, headers, tablefmt='github', disable_numparse=True)}\n\n{machine}"


def main() -> None:
    """Measure, or serve a parent that does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean nothing")
    parser.add_argument("--threads", type=int, default=SETTINGS["threads"])
    parser.add_argument("--rounds", type=int, default=SETTINGS["rounds"])
    parser.add_argument("--serve", choices=sorted(COMPETITORS), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.case)
        return
    settings = QUICK if options.quick else SETTINGS | {"threads": options.threads, "rounds": options.rounds}
    print(report(*measure(settings)))


if __name__ == "__main__":
    main()
