"""docs/extending.md: each recipe, followed literally in a copy of the repository."""

import ast
import os
import re
import subprocess
import sys

import pytest

import lbclient
from lbclient import protocol
from lbclient.discovery.registry import URL_SOURCES
from lbclient.strategy.registry import BY_NAME
from tests.support.recipes import PAGE, ROOT, apply, checks_of, copy_of_the_repository, recipes

RECIPES = recipes()
FOLLOWED = [title for title, text in RECIPES.items() if checks_of(text)]


def python(root, *arguments):
    """What a program prints that runs in a copy of the repository, with the copy's own code."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("title", FOLLOWED)
def test_a_recipe_followed_literally(title, tmp_path):
    """After a recipe was followed, the tests that it names pass, its own among them."""
    root = copy_of_the_repository(tmp_path / "copy")
    new, _ = apply(RECIPES[title], root)
    checks = checks_of(RECIPES[title])
    assert {path for path in new if "test_" in path} <= set(checks)
    assert str(root) in python(root, "-c", "import lbclient; print(lbclient.__file__)")
    assert " passed" in python(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", *checks)


@pytest.mark.parametrize("title", FOLLOWED)
def test_a_recipe_fits_the_files_that_it_changes(title, tmp_path):
    """Each line that a recipe looks for is in its file, once, and no new file is there already."""
    new, _ = apply(RECIPES[title], copy_of_the_repository(tmp_path / "copy"))
    assert new


def test_the_table_has_each_recipe():
    """The table at the top of the page links to each recipe."""
    linked = re.findall(r"^\| \[(.*?)\]\(#.*?\) \|", PAGE, re.MULTILINE)
    assert [title.capitalize() for title in linked] == list(RECIPES)


def test_a_protocol_uses_public_names_alone():
    """The examples of a protocol use the public names of `lbclient` and `lbclient.protocol`, and
    nothing else of this package."""
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    tree = ast.parse(code)
    imported = {
        f"{getattr(node, 'module', None) or ''}.{alias.name}".strip(".")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name for name in imported if name.startswith("lbclient")} == {
        "lbclient",
        "lbclient.protocol",
    }
    for module, names in (("lbclient", lbclient.__all__), ("protocol", protocol.__all__)):
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == module
        }
        assert used
        assert used <= set(names)


def test_the_docs_list_each_strategy_and_each_scheme():
    """The tables of docs/usage.md have a line for each strategy and for each scheme of URLs."""
    usage = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    for name in BY_NAME:
        assert f'| `"{name}"` |' in usage
    for kind in URL_SOURCES:
        assert f'| `"http+{kind}://' in usage
