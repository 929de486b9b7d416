"""Shared tiny encoder and shards."""

from __future__ import annotations

import pytest

from glass_fast.models.loading import load_encoder
from tests.training import tiny


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return load_encoder(tiny.write_encoder(tmp_path_factory.mktemp("models") / "encoder"), "cpu")


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return tiny.write_shards(tmp_path_factory.mktemp("data") / "shards")
