"""The recipes of docs/extending.md, applied to a copy of the repository.

`python -m tests.support.recipes FOLDER` makes a copy with all that add to lbclient, for linters.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
NEW, CHANGED = "python", "diff"
_STEP = re.compile(
    r"""
    ^`([\w./]+)`,\ (?:.|\n(?!\n))*?:\n\n  # a sentence that begins with the name of a file
    ```(\w+)\n((?s:.*?))^```$           # the block below it
    """,
    re.MULTILINE | re.VERBOSE,
)
_RUN = re.compile(r"^```console\npython -m pytest (.*?)\n```$", re.MULTILINE)


def recipes():
    """The text of each recipe, by its heading."""
    _, *parts = re.split(r"^## (.*)\n", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def checks_of(recipe):
    """The tests that a recipe says to run."""
    return [path for line in _RUN.findall(recipe) for path in line.split()]


def copy_of_the_repository(root):
    """All that tests and linters read, but for what a fresh clone has not either."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "_build", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, root, ignore=ignored, dirs_exist_ok=True)
    return root


def apply(recipe, root):
    """Follow a recipe in a copy of the repository. Returns its new files, and those it changes."""
    files = {NEW: [], CHANGED: []}
    for name, kind, block in _STEP.findall(recipe):
        path = root / name
        if kind == NEW:
            assert not path.exists(), f"{name} is there already"
            path.write_text(block, encoding="utf-8")
        else:
            path.write_text(_patched(path.read_text(encoding="utf-8"), block), encoding="utf-8")
        files[kind].append(name)
    return files[NEW], files[CHANGED]


def _patched(text, diff):
    for hunk in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"{text.count(before)} times in the file: {before}"
        text = text.replace(before, after)
    return text


if __name__ == "__main__":
    copy = copy_of_the_repository(Path(sys.argv[1]))
    for text in recipes().values():
        if f"```{CHANGED}" in text:  # the others are for code that is not ours
            apply(text, copy)
