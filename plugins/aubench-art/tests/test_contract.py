"""The contract of autoshield-bench: one test for every rule, for each defense."""

from __future__ import annotations

import pytest
from autoshield_bench.testing import DefenseContract


class TestJpeg(DefenseContract):
    """JPEG compression."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-jpeg"


class TestFeatureSqueezing(DefenseContract):
    """Fewer bits per value."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-feature-squeezing"


class TestSpatialSmoothing(DefenseContract):
    """The median of an odd window."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-spatial-smoothing"


class TestEvenSpatialSmoothing(DefenseContract):
    """The median of an even window, which has two middle values and no middle pixel."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-spatial-smoothing", {"window_size": 2}


class TestTotalVariation(DefenseContract):
    """Total variation minimisation as ART sets it up."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-total-variation"


class TestOtherTotalVariation(DefenseContract):
    """The other solver that is fast, and the other length."""

    @pytest.fixture
    def plugin(self) -> object:
        """Return the defense by its name."""
        return "aubench-art/art-total-variation", {"norm": 1, "lamb": 0.1, "solver": "CG"}
