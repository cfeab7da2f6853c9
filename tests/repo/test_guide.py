"""The guide to the tests, tests/README.md: its folders, helpers, fixtures and fault codes."""

import ast
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
GUIDE = (TESTS / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"\b[CDIKS][1-9][0-9]?\b")


def codes_in(path):
    """The codes in the docstrings and comments of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                found.update(CODE.findall(text))
    with tokenize.open(path) as lines:
        for token in tokenize.generate_tokens(lines.readline):
            if token.type == tokenize.COMMENT:
                found.update(CODE.findall(token.string))
    return found


def test_the_catalogue_has_exactly_the_codes_in_use():
    """The catalogue contains exactly the codes that docstrings and comments use, each once."""
    files = [*TESTS.rglob("*.py"), *(ROOT / "lbclient").rglob("*.py")]
    used = set().union(*map(codes_in, files))
    catalogue = re.findall(rf"^\| ({CODE.pattern}) \|", GUIDE, re.MULTILINE)
    assert sorted(catalogue) == sorted(used)


def test_the_guide_names_what_there_is():
    """The guide lists each folder of tests, each helper and each common fixture that tests ask
    for, and no other."""
    folders = {f"{one.parent.name}/" for one in TESTS.glob("*/__init__.py")}
    helpers = {one.name for one in (TESTS / "support").glob("[!_]*.py")}
    fixtures = {
        node.name
        for node in ast.parse((TESTS / "conftest.py").read_bytes()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        if any("fixture" in ast.unparse(one) for one in node.decorator_list)
    }
    first_cells = set(re.findall(r"^\| `([^`]+)` \|", GUIDE, re.MULTILINE))
    assert first_cells == folders | fixtures
    uses = GUIDE.partition("Helpers are in `support/`")[2].partition("## Fault codes")[0]
    assert set(re.findall(r"`(\w+\.py)`", uses)) == helpers


def test_files_that_the_guide_names():
    """Each file that the guide names by its path exists."""
    named = set(re.findall(r"`([\w/.]+/[\w/.]+\.\w+)`", GUIDE))
    assert named
    missing = {one for one in named if not any((at / one).exists() for at in (ROOT, TESTS))}
    assert missing == set()
