"""The contract of autoshield-bench: one test for every rule and every attack."""

from __future__ import annotations

import pytest
from autoshield_bench.testing import AttackContract


class TestFGSM(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-fgsm"


class TestPGD(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-pgd", {"steps": 10}


class TestPGDWithRestarts(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-pgd", {"steps": 10, "restarts": 2}


class TestAPGD(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-apgd", {"steps": 20, "restarts": 2}


class TestDeepFool(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-deepfool"


class TestDeepFoolOfFewClasses(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-deepfool", {"classes": 2}


class TestCarliniWagner(AttackContract):
    @pytest.fixture
    def plugin(self):
        # Fewer steps than by default, since it is slow; a larger first weight makes up for them.
        return "aubench-art/art-cw", {"initial_weight": 1.0, "search_steps": 5, "steps": 5}


class TestSquare(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-square"


class TestHopSkipJump(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-hop-skip-jump"


class TestBoundary(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-art/art-boundary"
