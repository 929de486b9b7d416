"""Fixtures and settings that every test relies on: offline, one thread, same random state."""

from __future__ import annotations

import os

# Before any import of torch or a hub library: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a busy 2-core machine 15x slower
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("GLASS_FAST_FAULT", None)  # a fault point left on in the shell would kill the test run

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# No deadline: other work on the machine must not decide a property test. Derandomised: red can be repeated.
settings.register_profile(
    "glass", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("glass")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photos and annotations (COCO and VOC subsets, CLIP vocabulary); skips without it."""
    named = os.environ.get("GLASS_FAST_REAL_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no real data: {folder} does not exist; set GLASS_FAST_REAL_DATA to the folder that holds it"
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Sums are split by thread count, so bit-exact tests need a fixed one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def fresh_backends() -> Iterator[None]:
    """Forget remembered backend probes and choices before and after a test that changes what is available."""
    from glass_fast import kernels

    kernels.forget()
    yield
    kernels.forget()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip without a CUDA device, with the reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(
                pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
            )
