"""Fails unless each public symbol of the installed lbclient has a known type and a docstring.

Run it with the Python of an environment that has a wheel of lbclient, httpx2 and pyright.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

here = Path(sys.executable).parent
done = subprocess.run(
    [here / "pyright", "--verifytypes", "lbclient", "--ignoreexternal", "--outputjson"],
    cwd=tempfile.gettempdir(),  # where pyright finds the package that is installed, not the source
    env={
        **os.environ,
        "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
    },  # pyright asks its python
    stdout=subprocess.PIPE,
    check=False,
)
found = json.loads(done.stdout)["typeCompleteness"]
symbols = [one for one in found["symbols"] if one["isExported"]]
for symbol in found["symbols"]:
    for lack in symbol["diagnostics"]:
        print(f"{symbol['name']}: {lack['message']}")
print(f"{len(symbols)} public symbols, {found['completenessScore']:.1%} with a known type")
sys.exit(done.returncode or any(symbol["diagnostics"] for symbol in found["symbols"]))
