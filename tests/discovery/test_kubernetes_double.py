"""Independent clients of Kubernetes work with the API server of the tests: this keeps it honest."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shutil
import subprocess

import pytest

from lbclient import Kubernetes
from tests.discovery.test_kubernetes import LIMIT, Seen
from tests.repo.test_blocks import blocks_of
from tests.support.faults import authority, certified
from tests.support.http import Server, tells_port
from tests.support.kubernetes import SLICES, ApiServer, a_slice, endpoint
from tests.support.recipes import ROOT
from tests.support.traefik import BINARY, traefik

KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
TOKEN = "s3cr3t"


@pytest.fixture
def cluster():
    with ApiServer(certified("127.0.0.1")) as server:
        server.tokens = {TOKEN}
        yield server


@pytest.fixture
def ca(tmp_path):
    authority().cert_pem.write_to_path(tmp_path / "ca.crt")
    return str(tmp_path / "ca.crt")


@pytest.fixture
def orders(cluster, ca):
    return Kubernetes("orders", namespace="shop", server=cluster.url, token=TOKEN, ca=ca)


@pytest.fixture
def kubectl(cluster, ca, tmp_path):
    """`kubectl(words, document)` runs it, and returns its output."""
    options = ["--server", cluster.url, "--certificate-authority", ca, "--token", TOKEN]
    options += ["--namespace", "shop"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def run(words, document=None):
        done = subprocess.run(
            [KUBECTL, *options, *words.split()],
            input=json.dumps(document),
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.start = lambda words: subprocess.Popen(
        [KUBECTL, *options, *words.split()], env=environment, stdout=subprocess.PIPE, text=True
    )
    return run


@needs_kubectl
def test_kubectl_reads_and_writes(kubectl, orders):
    """What kubectl creates, changes and deletes is what a source sees."""
    with Seen(orders) as seen:
        assert seen.next() == []
        kubectl("create --validate=false -f -", a_slice("a", ["10.0.0.1"]))
        assert seen.next() == ["10.0.0.1:8080"]
        kubectl("create --validate=false -f -", a_slice("b", ["10.0.0.2"]))
        assert seen.next() == ["10.0.0.1:8080", "10.0.0.2:8080"]
        patch = {"endpoints": [endpoint("10.0.0.2", ready=False, serving=True, terminating=True)]}
        kubectl(f"patch endpointslice b --type=merge -p {json.dumps(patch, separators=',:')}")
        assert seen.next() == ["10.0.0.1:8080"]
        kubectl("delete endpointslice a --wait=false")
        assert seen.next() == []
    found = json.loads(kubectl("get endpointslices -o json --chunk-size=1"))
    assert [one["metadata"]["name"] for one in found["items"]] == ["b"]
    selector = "kubernetes.io/service-name"
    for service, lines in (("orders", ["endpointslice.discovery.k8s.io/b"]), ("users", [])):
        got = kubectl(f"get endpointslices -o name -l {selector}={service}")
        assert got.splitlines() == lines


@needs_kubectl
def test_kubectl_watches(cluster, kubectl):
    """A watch of kubectl gets each change."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    with kubectl.start("get endpointslices -o json --watch --output-watch-events") as process:
        decoder, text = json.JSONDecoder(), ""

        def event():
            nonlocal text
            while True:
                with contextlib.suppress(ValueError):
                    found, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    return found["type"], found["object"]["metadata"]["name"]
                line = process.stdout.readline()
                assert line
                text += line

        try:
            assert event() == ("ADDED", "a")
            cluster.wait_until_watched()
            cluster.put(a_slice("b", ["10.0.0.2"]))
            assert event() == ("ADDED", "b")
            cluster.put(a_slice("a", ["10.0.0.3"]))
            assert event() == ("MODIFIED", "a")
            cluster.delete("b")
            assert event() == ("DELETED", "b")
        finally:
            process.kill()


@needs_kubectl
def test_kubectl_proxy(cluster, kubectl):
    """`server=` may be the address of `kubectl proxy`, which adds the token."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    with kubectl.start("proxy --port=0") as process:
        try:
            address = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())[0]
            with Seen(Kubernetes("orders", namespace="shop", server=f"http://{address}")) as seen:
                assert seen.next() == ["10.0.0.1:8080"]
                cluster.wait_until_watched()
                cluster.put(a_slice("a", ["10.0.0.2"]))
                assert seen.next() == ["10.0.0.2:8080"]
        finally:
            process.terminate()


RBAC = "rbac.authorization.k8s.io", "v1"


@pytest.fixture
def page(cluster, kubectl, tmp_path):
    """What docs/kubernetes.md lets kubectl create."""
    for number, text in enumerate(blocks_of("docs/kubernetes.md", "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        kubectl(f"create --validate=false -f {path}")
    return cluster


@needs_kubectl
def test_role_of_the_page(page, orders):
    """The Role of docs/kubernetes.md permits exactly what a source asks for, and is bound to the
    service account of the client."""
    (rule,) = page.get("discover", resource=(*RBAC, "roles"))["rules"]
    assert rule["apiGroups"] == [SLICES[0]]
    page.put(a_slice("a", ["10.0.0.1"]))
    page.allowed = {(verb, one) for verb in rule["verbs"] for one in rule["resources"]}
    page.asked.clear()
    with Seen(orders) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
        page.wait_until_watched()
    assert {(one.verb, one.resource) for one in page.asked} == page.allowed
    assert {(one.group, one.namespace) for one in page.asked} == {(SLICES[0], "shop")}
    binding = page.get("checkout-discovers", resource=(*RBAC, "rolebindings"))
    assert binding["roleRef"] == {"apiGroup": RBAC[0], "kind": "Role", "name": "discover"}
    (subject,) = binding["subjects"]
    account = page.get(subject["name"], resource=("", "v1", "serviceaccounts"))
    assert account["metadata"]["namespace"] == subject["namespace"]


@needs_kubectl
def test_deployment_of_the_page(page):
    """The Deployment of docs/kubernetes.md goes on for longer than a change may take, and has the
    port that the client names."""
    pod = page.get("orders", resource=("apps", "v1", "deployments"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert 1 <= int(seconds) < pod["terminationGracePeriodSeconds"]
    port = blocks_of("docs/kubernetes.md", "python")[0].partition("k8s://orders.shop:")[2]
    assert port.startswith(f'{container["ports"][0]["name"]}"')


def test_arguments_of_the_page():
    """docs/kubernetes.md has a row for each argument of `Kubernetes`."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows[:6] == list(inspect.signature(Kubernetes).parameters)


INGRESS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "Ingress",
    "metadata": {"name": "orders", "namespace": "shop"},
    "spec": {
        "rules": [
            {
                "host": "orders",
                "http": {
                    "paths": [
                        {
                            "path": "/",
                            "pathType": "Prefix",
                            "backend": {"service": {"name": "orders", "port": {"name": "http"}}},
                        }
                    ]
                },
            }
        ]
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "orders", "namespace": "shop"},
    "spec": {
        "clusterIP": "10.96.0.1",
        "type": "ClusterIP",
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
    },
}


@pytest.fixture
def two_servers():
    """Two servers at different addresses, since Traefik takes each address once."""
    made = [Server(tells_port, host=f"127.0.0.{n}") for n in (1, 2)]
    yield made
    for one in made:
        one.stop()


@pytest.mark.skipif(BINARY is None, reason="Traefik is not installed")
def test_traefik_discovers(cluster, ca, orders, tmp_path, two_servers):
    """Traefik lists and watches the same slices, and sends requests to the endpoints that a source
    finds, too."""
    first, second = two_servers
    answers = [(200, str(one.port)) for one in (first, second)]
    cluster.put(SERVICE, ("", "v1", "services"))
    cluster.put(INGRESS, ("networking.k8s.io", "v1", "ingresses"))

    def slices(*conditions):
        for name, server, kept in zip("ab", (first, second), conditions, strict=True):
            cluster.put(a_slice(name, [endpoint(server.host, **kept)], server.port))

    slices({}, {"ready": False, "serving": False})
    with (
        traefik(
            tmp_path,
            "--providers.providersthrottleduration=50ms",
            "--providers.kubernetesingress=true",
            f"--providers.kubernetesingress.endpoint={cluster.url}",
            f"--providers.kubernetesingress.token={TOKEN}",
            f"--providers.kubernetesingress.certauthfilepath={ca}",
        ) as proxy,
        Seen(orders) as seen,
    ):
        assert seen.next() == [f"127.0.0.1:{first.port}"]
        proxy.until("orders", {answers[0]})
        slices({}, {})
        while seen.next() != [f"127.0.0.1:{first.port}", f"127.0.0.2:{second.port}"]:
            pass
        proxy.until("orders", set(answers))
        slices({"ready": False, "serving": False, "terminating": True}, {})
        while seen.next() != [f"127.0.0.2:{second.port}"]:
            pass
        proxy.until("orders", {answers[1]})
