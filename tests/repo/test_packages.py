"""What is published: the source distribution, and the wheel that is built from it."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]
WITHOUT = {".git", "__pycache__", "_build"}


def built(source, target, into):
    """The file that the build backend makes of a source tree: `"sdist"` or `"wheel"`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (path,) = into.iterdir()
    return path


def files_below(root, *folders):
    """The files of these folders that are sources, by their paths below `root`."""
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root))
        for path in paths
        if not WITHOUT & set(path.parts) and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution."""
    into = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built(ROOT, "sdist", into)) as archive:
        archive.extractall(into, filter="data")
    (tree,) = (path for path in into.iterdir() if path.is_dir())
    return tree


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    with zipfile.ZipFile(built(sdist, "wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


def test_the_sdist_has_all_that_its_tests_read(sdist):
    """The source distribution has every file of the folders that it includes, and each page."""
    folders = (".ci", "benchmarks", "docs", "lbclient", "tests")
    assert files_below(sdist, *folders) == files_below(ROOT, *folders)
    top = {path.name for path in sdist.iterdir() if path.is_file()} - {"PKG-INFO"}
    assert {path.name for path in ROOT.glob("*.md")} <= top
    assert {"LICENSE", "pyproject.toml", ".gitignore"} <= top


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    """The wheel has each file of `lbclient`, types and all, and no test, page or benchmark."""
    names = wheel.namelist()
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert set(names) - about == files_below(ROOT, "lbclient")
    assert {"lbclient/py.typed", "lbclient/httpx2/__init__.pyi"} <= set(names)
    assert [name for name in about if name.endswith("/licenses/LICENSE")]


def test_the_metadata_of_the_wheel(wheel):
    """The wheel states its licence, the versions of Python that it supports, and its README."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = HeaderParser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (ROOT / "README.md").read_text().strip()
