"""What docs/llm.md shows: its Python, and the examples in examples/llm/, with the real SDKs."""

import ast
import asyncio
import contextlib
import inspect
import re
import runpy
import shlex
from pathlib import Path

import httpx2
import pytest

from examples.llm.servers import Endpoint

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "llm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(CONSOLE,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", CONSOLE, re.MULTILINE)


class Endpoints(contextlib.ExitStack):
    """A scripted endpoint for each URL of the page."""

    def __init__(self, keys):
        super().__init__()
        self._keys = keys
        self.by_url = {}

    def substitute(self, code):
        """The code with the URLs of scripted endpoints."""
        return re.sub(r'(?<=")https?://[^"]+(?=")', self._url, code)

    def _url(self, match):
        url = match[0]
        if url not in self.by_url:
            region, path = re.fullmatch(r"\w+://(?:\w+-)?(\w+)[\w.:]+(/.*)?", url).groups("")
            endpoint = Endpoint(region, key=self._keys.get(region, ""), path=path)
            self.by_url[url] = self.enter_context(endpoint)
        return self.by_url[url].url


def test_the_python_of_the_page(monkeypatch, capsys):
    """All blocks run in their order as one program, with only the URLs replaced, and each client
    gets an answer; each endpoint gets its own key, and no other one."""
    keys = {"eu": "key of eu", "us": "key of us"}
    for region, key in keys.items():
        monkeypatch.setenv(f"{region.upper()}_KEY", key)
    names, made = {}, []
    with Endpoints(keys) as endpoints, contextlib.ExitStack() as clients:
        for block in BLOCKS:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(endpoints.substitute(block), "docs/llm.md", "exec", flags=flags)
            result = eval(code, names)
            if inspect.iscoroutine(result):
                asyncio.run(result)
            for value in names.values():
                if isinstance(value, httpx2.Client) and value not in made:
                    made.append(value)
                    clients.callback(value.close)
                    assert ask(value).startswith("This is ")
        for endpoint in endpoints.by_url.values():
            seen = {request.headers.get("authorization") for request in endpoint.requests}
            assert not endpoint.key or seen <= {f"Bearer {endpoint.key}"}
            if endpoint.name == "azure":
                assert seen == {None}
        used = {one.name for one in endpoints.by_url.values() if one.requests}
        assert used >= {"azure", "eu", "us"}
    assert "This is" in capsys.readouterr().out


def ask(http):
    """The answer to a prompt that is sent over a client of the page."""
    client = openai.OpenAI(
        http_client=http, base_url=http.base_url, api_key="replaced", max_retries=0
    )
    messages = [{"role": "user", "content": "Where are you?"}]
    answer = client.chat.completions.create(model="any", messages=messages)
    return answer.choices[0].message.content


@pytest.mark.parametrize(("command", "output"), COMMANDS, ids=[one for one, _ in COMMANDS])
def test_the_examples(command, output, monkeypatch, capsys):
    """Each example runs as it stands, and prints what the page shows."""
    python, script = shlex.split(command)
    assert python == "python"
    path = ROOT / script
    monkeypatch.syspath_prepend(path.parent)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out == output


def test_every_example_is_on_the_page():
    """The page has the command of each example."""
    there = {path.name for path in (ROOT / "examples" / "llm").glob("*.py")} - {"servers.py"}
    assert {Path(command).name for command, _ in COMMANDS} == there


def test_defaults_of_the_sdks():
    """What the page says about the retries of the SDKs is true of both."""
    assert "`max_retries=2`" in PAGE
    assert {openai.DEFAULT_MAX_RETRIES, anthropic.DEFAULT_MAX_RETRIES} == {2}
