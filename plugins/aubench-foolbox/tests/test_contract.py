"""The contract of autoshield-bench: one test for every rule and every attack. Slow attacks get fewer steps."""

from __future__ import annotations

import pytest
from autoshield_bench.testing import AttackContract


class TestFastGradient(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-fgsm"


class TestProjectedGradientDescent(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-pgd"


class TestMomentumIterative(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-mim"


class TestDeepFool(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-deepfool"


class TestCarliniWagner(AttackContract):
    @pytest.fixture
    def plugin(self):
        params = {"binary_search_steps": 5, "steps": 60, "step_size": 0.05, "initial_const": 0.1}
        return "aubench-foolbox/foolbox-cw", params


class TestDecoupledDirectionNorm(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-ddn"


class TestFastMinimumNorm(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-fmn"


class TestBoundary(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-foolbox/foolbox-boundary"


class TestHopSkipJump(AttackContract):
    @pytest.fixture
    def plugin(self):
        # Small estimates, so that the queries that the kit grants hold several steps.
        return "aubench-foolbox/foolbox-hop-skip-jump", {"initial_gradient_eval_steps": 10}
