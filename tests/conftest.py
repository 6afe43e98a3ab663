"""What every test relies on: no plugin, data or cache of the machine beyond what the environment names."""

import os

import pytest

# Before torch is loaded: threads that wait must not spin, or tests crawl on a machine that does anything else.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process per core: more threads would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def one_thread():
    """Images this small are computed faster by one thread, and many times faster where others use the cores too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
