"""The contract of autoshield-bench: one test for every rule."""

from __future__ import annotations

import pytest
from autoshield_bench.testing import MetricContract


class TestStlpips(MetricContract):
    @pytest.fixture
    def plugin(self):
        return "aubench-stlpips/stlpips"
