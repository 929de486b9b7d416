"""Guards of the layout: the top-level folder ``kernels`` must never shadow the PyPI package of that name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from glass_fast import kernels

SOURCE_FOLDERS = ("glass_fast", "kernels", "tests", "benchmarks")


def python_files(root: Path) -> list[Path]:
    files = [path for folder in SOURCE_FOLDERS for path in (root / folder).rglob("*.py")]
    assert len(files) > 30, "the scan must see the repository"
    return [*files, root / "setup.py"]


def imports_top_level_kernels(tree: ast.AST) -> list[int]:
    """Lines that import ``kernels`` or a part of it as a top-level name."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        lines += [node.lineno for name in names if name.split(".")[0] == "kernels"]
    return lines


def test_the_scan_finds_what_it_forbids() -> None:
    bad = "import kernels\nimport kernels.a as m\nfrom kernels import x\nfrom kernels.a import y\n"
    assert imports_top_level_kernels(ast.parse(bad)) == [1, 2, 3, 4]
    good = "from glass_fast import kernels\nfrom glass_fast.kernels import ops\nfrom . import kernels\n"
    assert imports_top_level_kernels(ast.parse(good)) == []


def test_kernels_folder_is_not_a_package(repo_root) -> None:
    assert not (repo_root / "kernels" / "__init__.py").exists(), (
        "kernels/__init__.py would shadow the PyPI package `kernels`, which transformers imports"
    )
    assert not (repo_root / "benchmarks" / "__init__.py").exists(), "`benchmarks` is a name on PyPI too"


def test_nothing_imports_top_level_kernels(repo_root) -> None:
    found = {
        str(path.relative_to(repo_root)): lines
        for path in python_files(repo_root)
        if (lines := imports_top_level_kernels(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert not found, f"import glass_fast.kernels instead: {found}"


def test_ops_import_only_what_lies_below_them(repo_root) -> None:
    """import-linter does not see the mapped folders: an op may use errors, the native library and the registry."""
    allowed = ("glass_fast.errors", "glass_fast.native", "glass_fast.kernels")
    wrong = []
    for path in (repo_root / "kernels").glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "glass_fast":
                names = [f"glass_fast.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                inside = name.split(".")[0] == "glass_fast"
                if inside and not any(name == base or name.startswith(base + ".") for base in allowed):
                    wrong.append(f"{path.relative_to(repo_root)}:{node.lineno} imports {name}")
    assert not wrong


def test_every_folder_with_code_is_a_package(repo_root) -> None:
    """A folder without ``__init__.py`` works in a checkout but is left out of the wheel."""
    folders = {path.parent for path in (repo_root / "glass_fast").rglob("*.py")}
    folders |= {path.parent for path in (repo_root / "kernels").glob("*/*.py")}
    missing = sorted(
        str(folder.relative_to(repo_root)) for folder in folders if not (folder / "__init__.py").exists()
    )
    assert not missing


@pytest.mark.parametrize("op", kernels.ops())
def test_an_op_has_one_identity(op: str, repo_root) -> None:
    """However it is reached, an op is one module object from the checkout's folder."""
    module = importlib.import_module(f"glass_fast.kernels.{op}")
    again = importlib.import_module(f"glass_fast.kernels.{op}")
    assert module is again is sys.modules[f"glass_fast.kernels.{op}"]
    assert Path(module.__file__).parent == repo_root / "kernels" / op
    # transformers may probe the name `kernels` and get an empty namespace; an op below it would be a second copy
    assert not [name for name in sys.modules if name.startswith("kernels.")]
    value = getattr(kernels, op)
    assert value is getattr(module, op, module), f"kernels.{op} is the op's function"


def test_transformers_imports_from_the_checkout_root(repo_root) -> None:
    """With the checkout first on the path, transformers must not take our folder for `kernels`."""
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "from glass_fast.models.loading import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "from transformers import CLIPTextModel\n"
        "from glass_fast import kernels\n"
        "kernels.matching\n"
        "print(CLIPTextModel.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("CLIPTextModel")
