"""``docs/env.md`` lists exactly the environment variables that the code reads."""

from __future__ import annotations

import re
from pathlib import Path

# -DGLASS_FAST_X are CMake variables, not environment variables.
NAME = re.compile(r"(?<!-D)\bGLASS_FAST_[A-Z][A-Z_]*\b")


def names_in_code(root: Path) -> set[str]:
    files = [root / "setup.py", root / "Makefile", root / ".ci" / "run"]
    for folder in ("glass_fast", "kernels", "benchmarks", "tests"):
        files += [path for path in (root / folder).rglob("*.py") if path != Path(__file__).resolve()]
    return {name for path in files for name in NAME.findall(path.read_text(encoding="utf-8"))}


def test_list_and_code_agree(repo_root) -> None:
    listed = set(re.findall(r"^\| `(GLASS_FAST_[A-Z_]+)`", (repo_root / "docs" / "env.md").read_text(), re.M))
    used = names_in_code(repo_root)
    assert {"GLASS_FAST_BUILD", "GLASS_FAST_NATIVE"} <= used, "the scan must see the code"
    assert listed == used, (
        f"only in docs/env.md: {sorted(listed - used)}; only in code: {sorted(used - listed)}"
    )
