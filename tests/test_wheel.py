"""The wheel: whoever installs it has the commands, the recipes and everything else that they read."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "cagnet_hf"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this tree, built by the build backend that is installed."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("pyproject.toml asks for setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "tree" / "cagnet_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "tree" / name)
    program = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    built = subprocess.run([sys.executable, "-c", program], cwd=folder / "tree", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = {str(path.relative_to(REPOSITORY)) for path in PACKAGE.rglob("*") if path.is_file()}
    of_clones = {"cagnet_hf/README.md"}  # which tells contributors where a thing belongs
    expected = {name for name in files if "__pycache__" not in Path(name).parts} - of_clones
    assert {name for name in wheel.namelist() if name.startswith("cagnet_hf/")} == expected
    assert "cagnet_hf/recipes/scenes/benchmark.yaml" in expected
    assert "cagnet_hf/evaluation/zero_shot_segmentation/zero_shot_segmentation.py" in expected


def test_nothing_else_is_in_the_wheel(wheel):
    assert {Path(name).parts[0] for name in wheel.namelist() if not name.startswith("cagnet_hf-")} == {"cagnet_hf"}


def test_the_wheel_installs_the_command(wheel):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "cagnet-hf = cagnet_hf.cli:main" in wheel.read(entry_points).decode()
