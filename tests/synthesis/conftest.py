"""Fixtures of the synthesis tests: the builder of random models, and one tiny generator for the session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_helper(name: str) -> ModuleType:
    """A module beside this file (pytest's importlib mode puts no test folder on the path)."""
    full = f"glass_fast_tests_synthesis_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def tiny_sd() -> ModuleType:
    return load_helper("tiny_sd")


@pytest.fixture
def tiny(tiny_sd: ModuleType) -> Any:
    return tiny_sd.generator()
