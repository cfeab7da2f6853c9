"""Fails if a public name, a member or a parameter of the newest tag is gone or has changed.

Until there is a tag, `tests/repo/test_api.py` alone compares the API, with a recorded one.
"""

import subprocess
import sys
from pathlib import Path

import griffe

sys.path.append(str(Path(__file__).parents[1]))
from tests.repo.public_api import MODULES

OPTIONS = (
    "balancer.options.BalancerOptions",
    "http.options.ConnectionOptions",
    "http.options.HttpxOptions",
)


def public(package: griffe.Module) -> griffe.Module:
    """What the public modules name, wherever it is defined."""
    found = griffe.Module("public")
    for path in MODULES:
        module = package[path.partition(".")[2]] if "." in path else package
        for name in module.exports or ():
            thing = module[str(name)]
            if not thing.is_alias or thing.final_target.package.name == "lbclient":
                found.members[f"{path}.{name}"] = thing
    for options in OPTIONS:  # which functions take as `**options`
        found.members[options] = package[options]
    return found


asked = ["git", "describe", "--tags", "--abbrev=0"]
tag = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
if not tag:
    sys.exit(print("there is no tag yet to compare with"))
before = public(griffe.load_git("lbclient", ref=tag))
now = public(griffe.load("lbclient", search_paths=["."]))
found = [
    one.explain(griffe.ExplanationStyle.ONE_LINE)
    for one in griffe.find_breaking_changes(before, now)
]
print(f"{len(before.members)} public names, compared with {tag}", *found, sep="\n")
sys.exit(bool(found))
