"""The public names with their members and parameters, as text: one line for each.

`python -m tests.repo.public_api` records them in `public_api.txt`, for `test_api.py`. Do that at
each release, and where a name is removed on purpose.
"""

import inspect
from importlib import import_module
from pathlib import Path

MODULES = (
    "lbclient",
    "lbclient.asgi",
    "lbclient.grpc",
    "lbclient.grpc.aio",
    "lbclient.httpx2",
    "lbclient.protocol",
    "lbclient.simulation",
    "lbclient.wsgi",
)
RECORD = Path(__file__).with_suffix(".txt")


def surface():
    """Yield a line for each public name, for each of its members, and for each parameter."""
    for module in map(import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            yield from described(f"{module.__name__}.{name}", thing)
            if inspect.isclass(thing):
                for member, value in sorted(members(thing).items()):
                    yield from described(f"{module.__name__}.{name}.{member}", value)


def members(kind):
    """The public members that our own classes give to this one."""
    ours = [one for one in reversed(kind.__mro__) if one.__module__.startswith("lbclient")]
    found = {name: value for one in ours for name, value in vars(one).items()}
    return {
        name: getattr(kind, name) if isinstance(value, classmethod) else value
        for name, value in found.items()
        if not name.startswith("_")
    }


def described(path, thing):
    """Yield the name, and its parameters: with their place if it has one, `=` for optional ones."""
    yield path
    try:
        takes = inspect.isroutine(thing) or inspect.isclass(thing)
        parameters = inspect.signature(thing).parameters.values() if takes else ()
    except ValueError:  # an exception that takes what all exceptions take
        return
    for place, one in enumerate(parameters):
        at = f"{place} " if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) else ""
        optional = one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if (place, one.name) != (0, "self"):
            yield f"{path}({at}{one.name}{'=' * optional})"


def breaks():
    """The recorded lines that are gone, and the parameters that callers must pass from now on."""
    recorded, now = set(RECORD.read_text(encoding="utf-8").splitlines()), set(surface())
    required = (line for line in now - recorded if line.endswith(")") and not line.endswith("=)"))
    new = {line for line in required if line.partition("(")[0] in recorded}
    return sorted((recorded - now) | new)


if __name__ == "__main__":
    RECORD.write_text("".join(f"{line}\n" for line in surface()), encoding="utf-8")
