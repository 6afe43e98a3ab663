"""The contract of autoshield-bench: every rule, for every attack. Fewer steps where an attack is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
from autoshield_bench.testing import AttackContract


class TestFGSM(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-fgsm"


class TestPGD(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-pgd"


class TestEOTPGD(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-eotpgd"


class TestMIFGSM(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-mifgsm"


class TestJitter(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-jitter"


class TestAPGD(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-apgd", {"steps": 10}


class TestAPGDOnDLR(AttackContract):
    known_failures: ClassVar[Mapping[str, str]] = {
        "linear-optimum": "its loss needs three classes, the model of known optimum has two"
    }

    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-apgd", {"steps": 10, "loss": "dlr", "restarts": 2}


class TestAPGDT(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-apgdt", {"steps": 10}


class TestSquare(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-square", {"queries": 300}


class TestAutoAttack(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-autoattack", {"steps": 5, "queries": 20}


class TestAutoAttackForRandomisedDefenses(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-autoattack", {"version": "rand", "steps": 2}


class TestCW(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-cw", {"steps": 100}


class TestDeepFool(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-deepfool", {"steps": 10}


class TestFAB(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-fab"


class TestFABOverClassesAndRestarts(AttackContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-torchattacks/torchattacks-fab", {"multi_targeted": True, "restarts": 2}
