"""Fixtures that all tests may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """An empty project with the plugin's kinds."""
    return Sandbox(tmp_path)
