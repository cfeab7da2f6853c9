"""Every code block of every page is run, or a comment above it says why it cannot be."""

import ast
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import lbclient
from lbclient.cli.parser import parser
from lbclient.cli.report import changes, picture
from lbclient.discovery.file import FileResolver
from lbclient.endpoint.instance import RejectedRecord
from lbclient.http.probes import load_of
from tests.support.recipes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^>]*) -->\n)?```(?P<kind>\S*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN_AS_PYTHON = {page for page in PAGES if page.parent.name == "docs"} | {ROOT / "README.md"}
RUN_AS_FILES = ROOT / "docs" / "extending.md"
CANNOT_RUN = 1
"""How many blocks say that they cannot be run. A new one needs a good reason."""


def blocks_of(name, kind=None):
    """The text of each block of a page, of one kind or of any."""
    found = BLOCK.finditer((ROOT / name).read_text(encoding="utf-8"))
    return [block["text"] for block in found if kind in (None, block["kind"])]


def lines_of(page):
    """The commands of a page."""
    text = "\n".join(blocks_of(page, "console")).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in text.splitlines()]


def test_every_block_is_run_or_says_why_not():
    """Python in docs/ and the README is run as it stands; any other block names the test that runs
    it, or says why it cannot be run."""
    cannot_run = 0
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            where = f"{page.name}: {block['text'].partition(chr(10))[0]}"
            if page == RUN_AS_FILES or block["kind"] == "{toctree}":
                continue  # test_extending.py follows the page; Sphinx reads the other
            mark = block["mark"] or ""
            if mark.startswith("not run: "):
                cannot_run += 1
            elif mark:
                path = ROOT / mark.removeprefix("run by ")
                assert page.name in path.read_text(encoding="utf-8"), where
            else:
                assert block["kind"] == "python", where
                assert page in RUN_AS_PYTHON, where
    assert cannot_run == CANNOT_RUN


def test_examples_of_a_file_of_instances(tmp_path):
    """The examples of docs/discovery.md are files that are read without a refusal."""
    text = blocks_of("docs/discovery.md", "text")[0]
    json_text, unlike = blocks_of("docs/discovery.md", "json")[:2]
    config_map = blocks_of("docs/discovery.md", "yaml")[0].partition("instances: |\n")[2]
    config_map = re.match(r"(?: +.*\n)+", config_map)[0].replace("    ", "")
    for content, number in ((text, 3), (json_text, 2), (unlike, 2), (config_map, 2)):
        path = tmp_path / "instances"
        path.write_text(content)
        answer = FileResolver(path).resolve()
        assert len(answer.instances) == number
        assert not answer.refused


def test_examples_of_a_load_report():
    """The examples of docs/usage.md are parsed to the same report: seven in flight, 20 ms."""
    headers = [text for text in blocks_of("docs/usage.md", "text") if "endpoint-load" in text]
    lines = "".join(headers).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert load_of(line.partition(": ")[2]) == lbclient.LoadReport(7, 0.02)


def test_examples_of_log_lines():
    """Each log line of docs/usage.md can be written by one of the package's logging calls."""
    forms = set()
    for path in (ROOT / "lbclient").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and "%s: " in str(node.value):
                text = re.sub(
                    r"%(\.1f|d)", "NUMBER", re.escape(str(node.value)).replace("%s", ".+")
                )
                forms.add(text.replace("NUMBER", r"[\d.]+").replace("%\\.1f", r"[\d.]+"))
    (block,) = (text for text in blocks_of("docs/usage.md", "text") if "WARNING" in text)
    for line in block.splitlines():
        message = line.partition(" ")[2].strip()
        assert any(re.fullmatch(form, message) for form in forms), line


def test_the_example_of_resolve():
    """What docs/discovery.md shows of `lbclient resolve --watch` is what the command prints."""

    def instance(name, weight, address, priority=0):
        host = f"{name}.example.com"
        return lbclient.Instance(host, 8080, weight, priority, addresses=(address,))

    address = "169.254.169.254"
    why = f"{address} is a cloud metadata address; pass allow=['{address}/32'] to permit it"
    refused = [RejectedRecord("10 1 8080 meta.example.com.", why)]
    spare, second = instance("spare", 1, "10.1.0.1", 10), instance("orders-2", 1, "10.0.0.2")
    first, third = instance("orders-1", 3, "10.0.0.1"), instance("orders-3", 4, "10.0.0.3")
    lighter = instance("orders-1", 1, "10.0.0.1")
    sets = [[first, second, spare], [first, second, third, spare], [lighter, second, third, spare]]
    answers = [lbclient.Answer(one, 1, refused) for one in [*sets, [lighter, third, spare]]]
    (block,) = (
        text for text in blocks_of("docs/discovery.md", "console") if "lbclient resolve" in text
    )
    told = [line for before, now in pairwise(answers) for line in changes(before, now)]
    shown = "\n".join(picture("orders.example.com", answers[0]))
    assert shown in block
    rest = re.sub(r"^\S+T\S+ ", "", block.partition(shown)[2], flags=re.MULTILINE)
    assert [line for line in rest.splitlines() if line in told] == told


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_lbclient(page):
    """Each command `lbclient ...` of a page has arguments that the command takes."""
    for line in lines_of(page):
        if line.startswith("lbclient "):
            assert parser().parse_args(shlex.split(line)[1:]).run


@pytest.mark.slow
@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "tests/README.md"])
def test_commands_of_pytest(page):
    """Each command of a page that runs some of the tests selects at least one."""
    commands = [
        shlex.split(line, comments=True)[3:] for line in lines_of(page) if "-m pytest" in line
    ]
    named = [arguments for arguments in commands if any("tests/" in one for one in arguments)]
    assert named
    for arguments in named:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]


def test_scripts_of_the_guide_to_the_benchmarks():
    """Each script that benchmarks/README.md calls is there, and takes the options that it is given;
    tests/repo/test_benchmarks.py runs it."""
    tested = (ROOT / "tests/repo/test_benchmarks.py").read_text(encoding="utf-8")
    scripts = {line.split()[1] for line in lines_of("benchmarks/README.md")}
    assert scripts
    for script in scripts:
        assert Path(script).stem in tested, script
        assert (ROOT / script).is_file()


def serve(command, folder):
    """Start a server by a command of the README. Returns the process and its port, which is another
    one if the README's is taken."""
    python, module, name, port, *rest = command
    assert (python, module, name) == ("python3", "-m", "http.server")
    for number in (port, "0"):
        process = subprocess.Popen(
            [sys.executable, "-u", module, name, number, *rest],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if said := re.match(r"Serving HTTP on 127\.0\.0\.1 port (\d+)", process.stdout.readline()):
            return process, said[1]
        stop(process)
    raise AssertionError(f"{command} does not start")


def stop(process):
    process.kill()
    process.communicate()


def test_the_first_example_of_the_readme(tmp_path):
    """The README's example reaches both of its servers; with one stopped, every call succeeds.

    Both commands and the program run as they stand, unless other programs have taken their ports.
    """
    commands = [shlex.split(line) for line in lines_of("README.md") if "http.server" in line]
    (program,) = (text for text in blocks_of("README.md", "python") if "# example.py" in text)
    servers = []

    def printed():
        (tmp_path / "example.py").write_text(program)
        command = [sys.executable, "example.py"]
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    try:
        for command in commands:
            process, real = serve(command, tmp_path)
            servers.append(process)
            program = program.replace(f":{command[3]}", f":{real}")
        first = {line.partition(" attempts")[0] for line in printed()}
        assert len(first) == 2
        assert all(line.startswith("200 from 127.0.0.1:") for line in first)
        stop(servers.pop())
        second = printed()
        assert len(second) == 4
        assert {line.partition(" attempts")[0] for line in second} < first
        assert any(line.endswith("attempts: 2") for line in second)
    finally:
        for process in servers:
            stop(process)
