"""What type checkers are told of the files that are loaded a second time."""

import ast
import re
from pathlib import Path

import pytest

import lbclient
import lbclient.httpx2

ROOT = Path(lbclient.__file__).parent
STUB = ast.parse((ROOT / "httpx2" / "__init__.pyi").read_text())
FILES = [*(ROOT / "http").glob("*.py"), ROOT / "http/connections/custom_transport.py"]
SOURCE = [one for path in FILES for one in ast.parse(path.read_text()).body]


def named(kind, body):
    return {one.name: one for one in body if isinstance(one, kind)}


def assigned(body):
    """What is assigned to plain names."""
    for one in body:
        if isinstance(one, ast.Assign | ast.AnnAssign) and one.value is not None:
            target = one.target if isinstance(one, ast.AnnAssign) else one.targets[0]
            yield ast.unparse(target), one.value


TOLD, WRITTEN = named(ast.ClassDef, STUB.body), named(ast.ClassDef, SOURCE)
ALIASES = dict(assigned(STUB.body))
EXPORTED = ast.literal_eval(ALIASES.pop("__all__"))


class ForHttpx2(ast.NodeTransformer):
    """The source with httpx2 in place of httpx, and options as types only."""

    def visit_Name(self, node):
        return ast.Name("httpx2") if node.id == "httpx" else node

    def visit_Subscript(self, node):
        if ast.unparse(node.value) == "Annotated":
            node = node.slice.elts[0]
            if isinstance(node, ast.Constant):
                node = ast.parse(node.value, mode="eval").body
            return self.visit(node)
        return self.generic_visit(node)


def told(node):
    """The first paragraph of its docstring, with httpx2 in the place of httpx."""
    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    text = re.sub(r"\bhttpx\b", "httpx2", text)
    return re.sub(r"\blbclient\.(?=[A-Z])", "lbclient.httpx2.", text)


def public(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
        node.name == "__init__" or not node.name.startswith("_")
    )


def bases(a_class):
    """Its bases, and in place of one that the stub keeps to itself, the bases of that one."""
    for base in a_class.bases:
        name = ast.unparse(base)
        if name in WRITTEN and name not in TOLD:
            yield from bases(WRITTEN[name])
        else:
            yield ast.unparse(ForHttpx2().visit(base))


def declared(a_class):
    """Its bases, public fields, the signatures of public methods, and what all of them are for."""
    yield list(bases(a_class)), told(a_class)
    a_class = ForHttpx2().visit(a_class)
    for node in a_class.body:
        if isinstance(node, ast.AnnAssign):
            if not ast.unparse(node.target).startswith("_"):
                yield ast.unparse(node)
        elif public(node):
            marks = [ast.unparse(one) for one in node.decorator_list]
            yield marks, type(node), node.name, ast.unparse(node.args), ast.unparse(node.returns)
            yield told(node)


@pytest.mark.parametrize("name", TOLD)
def test_the_stub_tells_what_the_source_says(name):
    """Bases, options, signatures and docstrings of the stub are the source's, for httpx2."""
    assert list(declared(TOLD[name])) == list(declared(WRITTEN[name]))


@pytest.mark.parametrize("name", ALIASES)
def test_the_stub_has_the_sources_aliases(name):
    """The names of argument types mean the same in both, except for the library."""
    written = ForHttpx2().visit(dict(assigned(SOURCE))[name])
    assert ast.unparse(ALIASES[name]) == ast.unparse(written)


def test_the_stub_names_what_there_is():
    """What the stub exports is what the module exports, and the clients are among its classes."""
    assert lbclient.httpx2.__all__ == EXPORTED
    assert {"Client", "AsyncClient", "Transport", "AsyncTransport"} <= set(TOLD)
    assert all(hasattr(lbclient.httpx2, name) for name in EXPORTED)
