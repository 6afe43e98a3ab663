"""Attacks without gradients, minimum-norm attacks, targets and declared randomness: what the host promises of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from builders import cell, record, result_set
from test_run import error_of, go, home, suite
from torch import nn

from autoshield_bench import leaderboard, registry
from autoshield_bench.contracts import (
    CONTRACT,
    Attack,
    AttackRequest,
    AttackSpec,
    Defense,
    DefenseSpec,
    ThreatModel,
)
from autoshield_bench.engine.access import attempt, target_for
from autoshield_bench.engine.export import ExportOptions, export
from autoshield_bench.engine.options import RunOptions, plan_for
from autoshield_bench.engine.pipeline import FittedStage, PassCounter, Pipeline
from autoshield_bench.engine.stages import other_classes
from autoshield_bench.errors import AccessError, BudgetSpent, CellError, SuiteError
from autoshield_bench.hookspecs import hookimpl
from autoshield_bench.reporting.console import console_for, print_leaderboards
from autoshield_bench.seeding import ImageRandom
from autoshield_bench.suite_check import load_suite
from autoshield_bench.target_module import TargetModule

LINF = ThreatModel(norm="linf", eps=0.3)


# Plugins ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Guess(Attack):
    """Random points for as long as it is let: it never stops by itself."""

    def run(self, request):
        turn = 0
        while len(request.images):
            noise = request.rng.uniform(request.images.shape[1:], turn, low=-1.0, high=1.0)
            request.target.logits((request.images + request.threat.eps * noise).clamp(0, 1))
            turn += 1
        return request.images


@dataclass(frozen=True, kw_only=True)
class AskForLogits(Attack):
    def run(self, request):
        return request.target.logits(request.images)


@dataclass(frozen=True, kw_only=True)
class Fade(Attack):
    """Fades an image to black until the label changes; black where it never does."""

    def run(self, request):
        best = torch.zeros_like(request.images)
        for step in reversed(range(1, 40)):
            x = request.images * (1 - step / 40)
            fallen = request.target.labels(x) != request.labels
            best = torch.where(fallen.view(-1, 1, 1, 1), x, best)
        return best


@dataclass(frozen=True, kw_only=True)
class Global(Attack):
    def run(self, request):
        step = request.threat.eps * torch.rand_like(request.images)
        return (request.images + step * request.target.labels(request.images).view(-1, 1, 1, 1).sign()).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class WriteTargets(Attack):
    """Writes the target into a pixel, so that a test can read it."""

    def run(self, request):
        x = request.images.clone()
        x[:, 0, 0, 0] = request.targets / 10
        return x


@dataclass(frozen=True, kw_only=True)
class Brightness(Defense):
    def anomaly_score(self, x, classify, rng):
        return x.flatten(1).mean(1) + 0.0 * classify(x).amax(1)


class Plugins:
    CONTRACT = CONTRACT

    @hookimpl
    def aubench_attacks(self):
        def spec(name, factory, **declared):
            return AttackSpec(
                name=name, factory=f"{__name__}:{factory}", summary="Test.", norms=("linf", "l2"), **declared
            )

        yield spec("guess", "Guess", needs="scores")
        yield spec("guess-labels", "AskForLogits", needs="labels")
        yield spec("fade", "Fade", needs="labels", search="minimum-norm")
        yield spec("global", "Global", needs="labels", randomness="global")
        yield spec("neighbours", "Fade", needs="labels", search="minimum-norm", depends_on_batch=True)
        yield spec("wraps", "Fade", needs="labels", search="minimum-norm", libraries=("tabulate",))
        yield spec("clock", "Global", needs="labels", randomness="irreproducible")
        yield spec("write-targets", "WriteTargets", targeted=True)

    @hookimpl
    def aubench_defenses(self):
        yield DefenseSpec(name="brightness", factory=f"{__name__}:Brightness", summary="Test.")


PLUGINS = [Plugins()]


def attack(use, access='["black-box"]', *lines):
    return "\n".join([f'[[attacks]]\nuse = "{use}"\naccess = {access}', *lines]) + "\n"


# Suites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "line", "said"),
    [
        (attack("pgd"), "access", 'needs gradients, which black-box access does not give; drop "black-box"'),
        (attack("fgsm", '["white-box"]', "queries = 9"), "queries", "belongs to black-box access"),
        (attack("guess", '["black-box"]', "queries = 0"), "queries", "at least 1"),
        (attack("fgsm", '["white-box"]', 'goal = "targeted"'), "goal", "takes no targets"),
        (attack("fgsm", '["white-box"]', 'goal = "target"'), "goal", 'did you mean "targeted"'),
        (attack("guess", '["blackbox"]'), "access", 'did you mean "black-box"'),
    ],
)
def test_what_does_not_fit_together_is_said_with_its_line(tmp_path, entry, line, said):
    path = suite(tmp_path, entry)
    number = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.startswith(line))
    with pytest.raises(SuiteError) as caught:
        load_suite(path, plugins=PLUGINS)
    (problem,) = caught.value.problems
    assert f"{path}:{number}: attacks[0].{line}" in problem
    assert said in problem


def keys(path, **options):
    plan = plan_for(load_suite(path, plugins=PLUGINS), RunOptions(limit=20, **options))
    return {str(own.id): own.attack.key for own in plan.cells if own.attack}


def test_eps_is_no_part_of_the_key_of_a_minimum_norm_attack(tmp_path):
    path = suite(tmp_path, attack("fade"), attack("guess"), eps="[0.1, 0.2]")
    found = keys(path)
    assert len(found) == 4
    assert len({key for name, key in found.items() if "/fade/" in name}) == 1
    assert len({key for name, key in found.items() if "/guess/" in name}) == 2


def test_the_size_of_a_batch_is_part_of_the_key_of_what_depends_on_it_alone(tmp_path):
    names = ("guess", "global", "neighbours", "clock")
    path = suite(tmp_path, *(attack(name) for name in names))
    small, large = keys(path, batch_size=10), keys(path, batch_size=20)
    changed = {name for name in names for cell in small if f"/{name}/" in cell and small[cell] != large[cell]}
    assert changed == {"global", "neighbours", "clock"}


def test_the_version_of_a_wrapped_library_is_part_of_the_key(tmp_path, monkeypatch):
    path = suite(tmp_path, attack("wraps", '["white-box"]'), attack("global", '["white-box"]'))
    before = keys(path)
    version = registry.installed_version("tabulate")
    assert version is not None
    monkeypatch.setattr(registry, "installed_version", lambda name: f"{version}.1" if name == "tabulate" else "1")
    after = keys(path)
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "/wraps/" in name}


def test_the_budget_is_part_of_the_key(tmp_path):
    few = keys(suite(tmp_path, attack("guess", '["black-box", "white-box"]', "queries = 7")))
    default = keys(suite(tmp_path, attack("guess", '["black-box", "white-box"]')))
    assert {name for name in few if few[name] != default[name]} == {name for name in few if "black-box" in name}


CHECKPOINTED = 'use = "small-cnn"\ncheckpoint = "net.safetensors"'


def test_what_is_scored_elsewhere_may_not_stop_and_needs_a_surrogate(tmp_path):
    entry = attack("pgd", '["white-box", "transfer"]', "stop_on_success = true")
    with pytest.raises(SuiteError) as caught:
        load_suite(suite(tmp_path, entry, model=CHECKPOINTED))
    found = "\n".join(caught.value.problems)
    assert "attacks[0].stop_on_success: transfer examples are scored on other pipelines than they are made on" in found
    assert "attacks[0].access: transfer needs a surrogate trained from another seed" in found


def test_a_transfer_attack_sees_the_same_design_from_another_seed(tmp_path):
    blurred = '[[defenses]]\nuse = "autoencoder"\nparams = { epochs = 1, width = 2 }\n'
    path = suite(tmp_path, blurred, attack("pgd", '["transfer", "white-box"]', "params = { steps = 5 }"))
    results, watch = go(path, tmp_path, limit=60)
    assert not results.failed
    assert len(watch.made("train")) == 2
    assert len(watch.made("fit")) == 2
    for defense in ("none", "autoencoder"):
        ((transfer,), (white,)) = (
            results.select(f"*/{defense}/pgd/{access}/*") for access in ("transfer", "white-box")
        )
        assert transfer.passes["attack"] == white.passes["attack"]  # the same design costs the same
        made, own = transfer.facts["attack"]["made_on"], white.facts["attack"]["made_on"]
        assert white.facts["model"]["key"] == own["model"] != made["model"]
        assert [stage["key"] for stage in white.facts["defense"]] == own["stages"]
        assert len(made["stages"]) == len(own["stages"])
        assert not set(made["stages"]) & set(own["stages"]) or defense == "none"
        assert results.arrays(transfer)["distance"].tolist() != results.arrays(white)["distance"].tolist()
        assert transfer.outcomes.hits >= white.outcomes.hits
    _, watch = go(path, tmp_path, limit=60)
    assert watch.stages == []


# What a target gives ----------------------------------------------------------------------------------------------


def classifier():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()


def request_for(needs, *, queries=None, search="fixed-budget", images=None, targets=None, stages=(), threat=LINF):
    spec = AttackSpec(name="x", factory="x:X", summary="x", norms=("linf", "l2"), needs=needs, search=search)
    source = torch.Generator().manual_seed(1)
    clean = torch.rand(5, 1, 8, 8, generator=source) if images is None else images
    model = classifier()
    labels = model(clean).argmax(1)
    rng = ImageRandom(0, range(len(clean)))
    counter = PassCounter()
    access = "white-box" if needs == "gradients" else "black-box"
    target = target_for(
        spec,
        access,
        Pipeline(model, stages, counter),
        rng.child("target"),
        classes=4,
        eot=1,
        images=clean,
        labels=labels,
        threat=threat,
        targets=targets,
        queries=queries,
    )
    request = AttackRequest(
        images=clean, labels=labels, threat=threat, target=target, rng=rng, targets=targets, queries=queries
    )
    return request, model, counter


def test_an_attack_on_scores_is_given_no_gradient():
    request, model, counter = request_for("scores", queries=9)
    x = request.images.clone().requires_grad_()
    logits = request.target.logits(x)
    torch.testing.assert_close(logits, model(request.images))
    assert not logits.requires_grad
    with pytest.raises(AccessError, match="needs='scores' and asked for a gradient"):
        request.target.loss_gradient(x, lambda logits: logits[:, 0])
    assert counter.to_json() == {"classifier": {"forward": 5, "backward": 0}}


def test_an_attack_on_labels_is_given_no_scores():
    request, model, _ = request_for("labels", queries=9)
    assert torch.equal(request.target.labels(request.images), model(request.images).argmax(1))
    for ask in (request.target.logits, TargetModule(request, "scores")):
        with pytest.raises(AccessError, match="needs='labels' and asked for logits"):
            ask(request.images)
    one_hot = TargetModule(request, "labels")(request.images)
    assert torch.equal(one_hot.argmax(1), request.labels)
    assert set(one_hot.unique().tolist()) == {0.0, 1.0}


def test_gradients_are_never_given_under_black_box_access():
    spec = AttackSpec(name="greedy", factory="x:X", summary="x", norms=("linf",))
    with pytest.raises(AccessError, match="'greedy' needs gradients"):
        target_for(
            spec,
            "black-box",
            Pipeline(classifier(), (), PassCounter()),
            ImageRandom(0, [0]),
            classes=4,
            eot=1,
            images=torch.zeros(1, 1, 8, 8),
            labels=torch.zeros(1, dtype=torch.int64),
            threat=LINF,
        )


# Budgets ----------------------------------------------------------------------------------------------------------


def test_each_image_has_a_budget_of_its_own_and_what_is_refused_is_not_counted():
    request, _, counter = request_for("scores", queries=3)
    target, x = request.target, request.images
    target.logits(x)
    rows = torch.tensor([0, 0, 4])
    target.select(rows).logits(x[rows])
    assert target.log.spent.tolist() == [3, 1, 1, 1, 2]
    with pytest.raises(BudgetSpent, match="budget of 3 queries is spent for 1 images"):
        target.logits(x)
    assert target.log.spent.tolist() == [3, 1, 1, 1, 2]
    rest = torch.tensor([1, 2, 3])
    target.select(rest).logits(x[rest])
    assert target.log.spent.tolist() == [3, 2, 2, 2, 2]
    assert counter.to_json()["classifier"]["forward"] == 11


def test_a_batch_of_another_size_is_refused():
    request, _, counter = request_for("scores", queries=3)
    with pytest.raises(CellError, match=r"asked about 2 images where the target is for 5; use select\(\)"):
        request.target.logits(request.images[:2])
    assert counter.total() == 0


def points_of(request, model):
    """For image 0: outside the ball and fallen, inside and standing, inside and fallen a little, then more."""
    clean, label = request.images[:1], request.labels[:1]

    def margin(x):
        logits = model(x)
        return logits.scatter(1, label[:, None], -torch.inf).amax(1) - logits[:, label[0]]

    point = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(point).sum(), point)
    toward = [(clean + length * gradient.sign()).clamp(0, 1) for length in (0.001, 0.1, 0.2, 0.29, 0.6)]
    return toward, [float(margin(x)) for x in toward]


@pytest.mark.parametrize("search", ["fixed-budget", "minimum-norm"])
def test_at_the_end_of_the_budget_the_host_keeps_the_best_point_in_the_ball(search):
    whole = ThreatModel(norm="linf", eps=1.0)
    request, model, _ = request_for("scores", queries=5, search=search, threat=LINF if search[0] == "f" else whole)
    points, margins = points_of(request, model)
    fallen = [index for index, margin in enumerate(margins) if margin > 0]
    assert 4 in fallen  # outside the ball of the fixed-budget attack
    assert 0 not in fallen
    one = request.target.select(torch.tensor([0]))

    class Asks(Attack):
        def run(self, request):
            for index in (4, 0, 3, 2, 1, 1):
                one.logits(points[index])
            raise AssertionError("the sixth query should not have been answered")

    best = attempt(Asks(), request)
    expected = points[3] if search == "fixed-budget" else points[fallen[0]]
    assert torch.equal(best[:1], expected)
    assert torch.equal(best[1:], request.images[1:])  # nothing was asked about them


def test_with_targets_the_best_point_is_one_of_the_target_class():
    base, model, _ = request_for("scores")
    targets = (base.labels + 1) % 4
    request, *_ = request_for("scores", queries=200, targets=targets)

    class Wander(Attack):
        def run(self, request):
            for turn in range(1000):
                noise = request.rng.uniform((1, 8, 8), turn, low=-0.3, high=0.3)
                request.target.logits((request.images + noise).clamp(0, 1))

    wander = attempt(Wander(), request)
    margin = model(wander).gather(1, targets[:, None])[:, 0] - model(request.images).gather(1, targets[:, None])[:, 0]
    assert (margin > 0).all()


def test_a_randomised_defense_draws_once_per_query_and_afresh_for_each():
    class Noise(Defense):
        def purify(self, x, rng):
            return (x + 0.1 * rng.normal(x.shape[1:], "noise")).clamp(0, 1)

    stage = FittedStage(component="1:noise", defense=Noise(), differentiable=True, stochastic=True)
    request, *_ = request_for("scores", queries=100, stages=(stage,))
    rows = torch.zeros(6, dtype=torch.int64)
    first = request.target.select(rows).logits(request.images[rows])
    second = request.target.select(rows).logits(request.images[rows])
    together = torch.cat([first, second])
    assert len({tuple(row) for row in together.tolist()}) == 12
    assert request.target.log.spent.tolist() == [12, 0, 0, 0, 0]


# The network that wrapped libraries see ---------------------------------------------------------------------------


def test_a_batch_that_a_library_cut_down_is_charged_to_the_right_images():
    request, model, _ = request_for("scores", queries=9)
    module = TargetModule(request, "scores")
    rows = torch.tensor([4, 1, 1])
    moved = (request.images[rows] + 0.29 * torch.rand(3, 1, 8, 8).sub(0.5).sign()).clamp(0, 1)
    torch.testing.assert_close(module(moved), model(moved))
    assert request.target.log.spent.tolist() == [0, 2, 0, 0, 1]


def test_points_of_no_image_are_refused():
    request, *_ = request_for("scores", queries=9)
    with pytest.raises(CellError, match="lie in no image's ball; run it image by image"):
        TargetModule(request, "scores")(1 - request.images[:2])


def test_any_number_of_points_belongs_to_an_only_image():
    request, *_ = request_for("scores", queries=9, images=torch.full((1, 1, 8, 8), 0.5))
    TargetModule(request, "scores")(torch.rand(7, 1, 8, 8))
    assert request.target.log.spent.tolist() == [7]


def test_gradients_flow_where_they_are_declared():
    request, model, counter = request_for("gradients")
    x, y = (request.images.clone().requires_grad_() for _ in range(2))
    TargetModule(request)(x).square().sum().backward()
    model(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert counter.to_json() == {"classifier": {"forward": 5, "backward": 5}}


def test_the_network_says_where_it_lies_and_learns_nothing():
    request, *_ = request_for("gradients")
    module = TargetModule(request)
    assert next(module.parameters()).device == request.images.device
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


# Whole runs -------------------------------------------------------------------------------------------------------


def test_a_black_box_cell_spends_queries_on_the_defended_pipeline_and_no_more_than_its_budget(tmp_path):
    blurred = '[[defenses]]\nuse = "autoencoder"\nparams = { epochs = 1, width = 2 }\n'
    path = suite(tmp_path, blurred, attack("guess", '["gray-box", "black-box"]', "queries = 4"), none=False)
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=20, only="*black-box*")
    (found,) = results.select("*/guess/black-box/*")
    assert found.passes["attack"] == {
        "1:autoencoder": {"forward": 80, "backward": 0},
        "classifier": {"forward": 80, "backward": 0},
    }
    assert found.facts["attack"]["queries"] == 4


def test_the_table_says_what_a_black_box_attack_saw(tmp_path, capsys):
    path = suite(tmp_path, attack("guess", '["black-box"]', "queries = 1234", "images = 5"), attack("fade"))
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=20, batch_size=20, only="*/fade/*")
    print_leaderboards(results, console_for(sys.stdout, 160))
    shown = " ".join(capsys.readouterr().out.split())
    assert "black-box: the attack sees scores or labels of the defended pipeline, within a query budget." in shown
    assert "fade/black-box finds the nearest adversarial point; an image falls where that lies within eps." in shown
    assert "fade/black-box may ask for labels 5,000 times per image." in shown


def test_what_asks_for_more_than_it_declares_fails_its_cell(tmp_path):
    path = suite(tmp_path, attack("guess-labels", '["black-box", "white-box"]'))
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=20)
    for access in ("black-box", "white-box"):
        said = error_of(results, f"*/guess-labels/{access}/*")
        assert said == "the attack declares needs='labels' and asked for logits; declare needs='scores'"


@pytest.fixture(scope="module")
def faded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faded")
    path = suite(folder, attack("fade", '["white-box"]'), eps="[0.2, 0.5, 1.0]")
    return folder, *go(path, folder, plugins=PLUGINS, limit=60)


def test_a_minimum_norm_attack_is_made_once_and_judged_at_every_eps_by_distance(faded):
    _, results, watch = faded
    assert len(watch.made("attack")) == 1
    cells = {own.cell.eps: results.arrays(own) for own in results.select("*/fade/*")}
    clean = results.arrays(results.select("*/clean/*")[0])
    shares = []
    for eps, arrays in cells.items():
        assert arrays["distance"].tolist() == cells[1.0]["distance"].tolist()  # however far, it is recorded
        near = arrays["distance"] <= eps
        assert 0 < near.sum() <= 60
        # Beyond eps the clean image stands, and within it what the pipeline makes of the point: all of them, at 1.
        assert (arrays["prediction"][~near] == clean["prediction"][~near]).all()
        assert (arrays["prediction"][near] == cells[1.0]["prediction"][near]).all()
        shares.append(arrays["correct"].mean())
    assert shares[0] > shares[1] > shares[2]


def test_the_exported_images_of_a_minimum_norm_attack_lie_in_the_ball(faded):
    from safetensors.torch import load_file

    folder, *_ = faded
    options = ExportOptions(
        only="*/linf-0.5/*",
        images=60,
        fallen=False,
        formats=["safetensors"],
        out=folder / "out",
        data_dir=None,
        cache_dir=folder / "cache",
        plugins=(),
    )
    import autoshield_bench.engine.export as module

    with pytest.MonkeyPatch.context() as patch:
        discover = module.Registry.discover
        patch.setattr(module.Registry, "discover", lambda _plugins: discover(PLUGINS))
        (file,) = export(home(folder), options)
    written = load_file(file)
    away = (written["adversarial"] - written["clean"]).abs().flatten(1).amax(1)
    assert float(away.max()) <= 0.5
    assert 0 < int((away == 0).sum()) < 60


def test_declared_global_randomness_is_seeded_by_the_host_and_given_back(tmp_path):
    path = suite(tmp_path, attack("global", '["white-box"]'))
    outcomes = []
    for seed, place in ((1, "a"), (2, "b")):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results, _ = go(path, tmp_path, plugins=PLUGINS, limit=40, batch_size=10, results=place, cache=place)
        assert torch.equal(before, torch.get_rng_state())
        (found,) = results.select("*/global/*")
        outcomes.append(results.arrays(found))
    first, second = outcomes
    assert first["distance"].tolist() == second["distance"].tolist()
    assert len(set(first["distance"].tolist())) > 30  # and batches do not repeat each other's draws


def test_an_attack_that_cannot_be_seeded_is_marked_on_the_table(tmp_path, capsys):
    path = suite(tmp_path, attack("clock", '["white-box"]'), attack("global", '["white-box"]'))
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=20)
    (board,) = leaderboard.build(results)
    assert "clock/white-box irreproducible" in board.rows[0].labels
    assert not any("global" in label for label in board.rows[0].labels)
    print_leaderboards(results, console_for(sys.stdout, 160))
    assert "irreproducible: an attack that cannot be seeded took part" in " ".join(capsys.readouterr().out.split())


def test_targets_are_wrong_classes_of_the_images_own(tmp_path):
    path = suite(tmp_path, attack("write-targets", '["white-box"]', 'goal = "targeted"'), eps="[1.0]")
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=60)
    assert results.select("*/write-targets/*")[0].facts["attack"]["goal"] == "targeted"
    assert not results.failed
    labels = torch.arange(10).repeat(300)
    rng = ImageRandom(0, range(len(labels)))
    targets = other_classes(labels, 10, rng)
    assert (targets != labels).all()
    counts = torch.bincount((targets - labels) % 10, minlength=10)[1:]
    assert len(counts) == 9
    assert float(counts.min()) > 250  # 333 expected, 17 standard deviation
    few = torch.tensor([5, 17])
    assert torch.equal(other_classes(labels[few], 10, rng.select(few)), targets[few])


def test_scores_of_a_detector_are_recorded_per_image(tmp_path):
    path = suite(tmp_path, '[[defenses]]\nuse = "brightness"\n', '[[attacks]]\nuse = "fgsm"\naccess = "white-box"\n')
    results, _ = go(path, tmp_path, plugins=PLUGINS, limit=30)
    for own in results.select("*/brightness/*"):
        scores = results.arrays(own)["anomaly/1:brightness"]
        assert scores.shape == (30,)
        assert len(set(scores.tolist())) > 20
    for own in results.select("*/none/*"):
        assert not any(name.startswith("anomaly/") for name in results.arrays(own))


# Tables -----------------------------------------------------------------------------------------------------------


def test_without_a_white_box_attack_there_is_no_worst_case_whatever_a_black_box_one_says():
    results = result_set(
        record(cell("none"), range(10)),
        record(cell("none", "square", "black-box"), range(4)),
        record(cell("none", "pgd", "gray-box"), range(5)),
    )
    ((row,),) = (board.rows for board in leaderboard.build(results))
    assert row.worst_case is None
    assert "no white-box attack" in row.labels


def test_a_black_box_attack_counts_in_the_worst_case():
    results = result_set(
        record(cell("none"), range(10)),
        record(cell("none", "square", "black-box"), range(4)),
        record(cell("none", "pgd", "white-box"), range(2, 8)),
    )
    ((row,),) = (board.rows for board in leaderboard.build(results))
    assert row.worst_case.hits == 2


def test_copies_of_an_image_draw_other_values():
    rng = ImageRandom(5, [7, 8])
    once = rng.select(torch.tensor([0])).normal((3,), "x")
    twice = rng.select(torch.tensor([0, 1, 0])).normal((3,), "x")
    assert torch.equal(twice[0], once[0])
    assert torch.equal(twice[1], rng.normal((3,), "x")[1])
    assert not torch.equal(twice[2], once[0])
