"""An instance that this host cannot reach is at fault only while others can be reached."""

import contextlib
import errno
import json
import random
import subprocess
import sys
from pathlib import Path

import anyio
import httpx
import pytest

import lbclient
import lbclient.httpx2
from lbclient import BreakerPolicy, Instance, RetryBudget, RetryPolicy
from lbclient.http.classifier import HttpClassifier
from tests.http.test_features import World, urls, worlds
from tests.support.faults import NAMESPACE
from tests.support.http import tells_port

NO_WAY = [
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.EACCES,
    errno.EPERM,
    errno.EAFNOSUPPORT,
]
EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]
NOWHERE = "127.255.255.255"
"""A broadcast address of the loopback network: connecting to it fails with ENETUNREACH at once."""
NO_BUDGET = RetryPolicy(budget=RetryBudget(0.0, 0.0), backoff=0.0, backoff_max=0.0)
each_number = pytest.mark.parametrize("number", NO_WAY, ids=errno.errorcode.get)


class Network:
    """A balancer over instances of which some cannot be reached; `errors` are what they raise."""

    def __init__(self, number=4, **options):
        self.now = 0.0
        self.hosts = [f"10.0.0.{place}" for place in range(1, number + 1)]
        self.errors = {}
        given = {"retry": NO_BUDGET, "rng": random.Random(1), "strategy": "round-robin"}
        self.balancer = lbclient.Balancer(
            [f"http://{host}" for host in self.hosts], clock=lambda: self.now, **given | options
        )

    def dial(self, instance):
        if (made := self.errors.get(instance.host)) is not None:
            raise made() if callable(made) else OSError(made, "told by a test")
        return instance.host

    async def adial(self, instance):
        await anyio.lowlevel.checkpoint()
        return self.dial(instance)

    def call(self):
        """The host that served a call, or the error that ended it."""
        try:
            return self.balancer.call(self.dial)
        except OSError as error:
            return error
        except lbclient.LoadBalancingError as error:
            return error

    def lose(self, *hosts, number=errno.ENETUNREACH):
        self.errors |= dict.fromkeys(hosts or self.hosts, number)

    def find(self, *hosts):
        for host in hosts or self.hosts:
            self.errors.pop(host, None)

    def told(self, what):
        return [getattr(one, what) for one in self.balancer.snapshot().instances]


@each_number
def test_one_of_four(number):
    """An instance that cannot be reached while others can fails no call, whatever the retry budget,
    and leaves the rotation after `fail_max` faults. The first failure does not count, since nothing
    was reached after it yet."""
    network = Network()
    lost = network.hosts[0]
    network.lose(lost, number=number)
    assert {network.call() for _ in range(100)} == set(network.hosts[1:])
    assert network.told("failures") == [5, 0, 0, 0]
    assert network.told("breaker") == ["open", "closed", "closed", "closed"]
    assert network.told("attempts")[0] == 6


@pytest.mark.anyio
async def test_one_of_four_on_an_event_loop():
    """The same for concurrent coroutines."""
    network = Network()
    network.lose(network.hosts[0])
    served = []

    async def calls():
        served.extend([await network.balancer.acall(network.adial) for _ in range(20)])

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(calls)
    assert len(served) == 200
    assert set(served) == set(network.hosts[1:])
    assert network.told("breaker") == ["open", "closed", "closed", "closed"]


def test_one_of_four_without_retries():
    """Without retries only the first few calls meet the instance that cannot be reached."""
    network = Network(retry=None)
    network.lose(network.hosts[0])
    failed = [isinstance(network.call(), OSError) for _ in range(100)]
    assert sum(failed) == 6
    assert not any(failed[24:])


def test_one_that_is_acquired():
    """An attempt held by `acquire` counts in the same way."""
    network = Network(retry=None)
    network.lose(network.hosts[0])
    for _ in range(40):
        try:
            with network.balancer.acquire() as instance:
                network.dial(instance)
        except OSError:
            pass
    assert network.told("failures") == [5, 0, 0, 0]


def test_it_is_back_once_it_can_be_reached():
    """An instance that could not be reached is back with its first good probe."""
    network = Network()
    lost = network.hosts[0]
    network.lose(lost)
    for _ in range(40):
        network.call()
    network.find(lost)
    network.now += 1.0
    assert network.balancer.call(network.dial, idempotent=True) == lost
    assert network.told("breaker") == ["closed"] * 4


@each_number
@pytest.mark.parametrize("instances", [1, 2, 4])
def test_nothing_can_be_reached(instances, number):
    """While nothing can be reached no instance is charged, and when the network is back the next
    calls use all."""
    network = Network(instances)
    for reached_before in (False, True):
        network.lose(number=number)
        assert all(isinstance(network.call(), OSError) for _ in range(50))
        assert network.told("failures") == [0] * instances, reached_before
        network.find()
        assert {network.call() for _ in range(instances)} == set(network.hosts)
    assert network.told("breaker") == ["closed"] * instances


def test_the_network_goes_down_and_comes_back_many_times():
    """Attempts that succeeded between two outages prove nothing about the second. At most one fault
    is counted, for an instance that was unreachable in the first and was not called in between. So
    no breaker opens, however often the network fails, and whichever instances the calls use.
    """
    network = Network(strategy="random")
    dice = random.Random(2)
    for _ in range(200):
        network.lose()
        before = network.told("failures")
        for _ in range(dice.randrange(1, 20)):
            network.call()
        after = network.told("failures")
        assert max(new - old for new, old in zip(after, before, strict=True)) <= 1
        network.find()
        for _ in range(dice.randrange(1, 5)):
            assert network.call() in network.hosts
        assert network.told("breaker") == ["closed"] * 4


def test_an_answer_that_was_sent_for_before_the_outage():
    """A late answer to an attempt that was sent before an instance became unreachable does not
    prove that others can be reached."""
    network = Network(2, retry=None, breaker=BreakerPolicy(fail_max=1))
    with network.balancer.acquire():
        network.lose()
        for _ in range(4):
            network.call()
    for _ in range(10):
        network.call()
    assert network.told("failures") == [0, 0]


def refused():
    return ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize(
    ("error", "proves"),
    [
        (refused, True),
        (lambda: ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError, False),
        (lambda: OSError(errno.EMFILE, "none left"), False),
        (lambda: ValueError("the caller's own"), False),
    ],
)
def test_what_proves_that_others_can_be_reached(error, proves):
    """A refusal or a reset comes from the destination, so there is a route to it; a connect timeout
    proves nothing."""
    network = Network(2, retry=None, breaker=None)
    network.errors = {network.hosts[0]: errno.ENETUNREACH, network.hosts[1]: error}
    for _ in range(20):
        with contextlib.suppress(ValueError):
            network.call()
    assert (network.told("failures")[0] > 0) == proves


def test_the_lan_is_down_and_an_instance_on_this_host_is_not():
    """Instances that cannot be reached while another can leave the rotation; once one of them can
    be reached again the others are probed at once, without waiting for their own open periods."""
    breaker = BreakerPolicy(reset_timeout=1.0, reset_timeout_max=60.0)
    retry = RetryPolicy(attempts=4, budget=None, backoff=0.0, backoff_max=0.0)
    network = Network(breaker=breaker, retry=retry)
    here, *lan = network.hosts
    network.lose(*lan)
    for _ in range(600):
        network.now += 1.0
        assert network.call() == here
    assert network.told("breaker") == ["closed", "open", "open", "open"]
    network.find(*lan)
    while (served := network.call()) == here:
        network.now += 1.0
    assert served in lan
    assert {network.balancer.call(network.dial, idempotent=True) for _ in range(2)} < set(lan)
    assert network.told("breaker") == ["closed"] * 4


def test_an_outage_of_all_while_one_is_out_already():
    """An instance that is out of rotation for lack of a route comes back, with all others, after an
    outage in which nothing could be reached."""
    network = Network()
    network.lose(network.hosts[0])
    for _ in range(40):
        network.call()
    network.lose()
    for _ in range(40):
        network.now += 1.0
        assert isinstance(network.call(), OSError)
    assert network.told("failures")[1:] == [0, 0, 0]
    network.find()
    assert {network.balancer.call(network.dial, idempotent=True) for _ in range(5)} == set(
        network.hosts
    )
    assert network.told("breaker") == ["closed"] * 4


@pytest.mark.parametrize("number", EXHAUSTED, ids=errno.errorcode.get)
def test_exhausted_resources_are_our_own_fault(number):
    """A lack of descriptors, buffers or memory is no instance's fault, even if others are
    reached."""
    network = Network()
    network.lose(network.hosts[0], number=number)
    for _ in range(100):
        assert network.call() in network.hosts
    assert network.told("failures") == [0] * 4


@pytest.mark.parametrize(
    ("host", "charged"), [("127.0.0.1", 0), ("localhost", 0), ("255.255.255.255", 5)]
)
def test_no_local_port_or_no_address(host, charged):
    """EADDRNOTAVAIL with a route to the destination means that no local port was left, which is not
    the instance's fault; without a route, that it cannot be reached. With a name it means
    neither."""

    def dial(instance):
        if instance.host == host:
            raise OSError(errno.EADDRNOTAVAIL, "told by a test")

    with lbclient.Balancer([Instance(host, 80), Instance("10.0.0.1", 80)], retry=NO_BUDGET) as made:
        for _ in range(40):
            made.call(dial)
        assert made.snapshot().instances[0].failures == charged


def test_a_file_that_may_not_be_opened():
    """A PermissionError about a file is the caller's own: it is not retried and charges no
    instance."""
    network = Network()
    network.errors = dict.fromkeys(
        network.hosts, lambda: PermissionError(errno.EACCES, "denied", "/etc/shadow")
    )
    assert isinstance(network.call(), PermissionError)
    network.find()
    assert sum(network.told("attempts")) == 1
    assert network.told("failures") == [0] * 4


def test_a_judge_says_unreachable():
    """A judge of the caller's can say for its protocol's errors that an instance cannot be
    reached."""

    class NoRoute(Exception):
        pass

    def judge(result):
        unreachable = isinstance(result, NoRoute)
        return lbclient.Verdict(
            False, again="always" if unreachable else "never", unreachable=unreachable
        )

    network = Network(judge=judge)
    network.errors = {network.hosts[0]: NoRoute}
    assert {network.call() for _ in range(40)} == set(network.hosts[1:])
    assert network.told("failures") == [5, 0, 0, 0]


def caused(error, cause):
    error.__cause__ = cause
    return error


def os_error(number):
    return OSError(number, "told by a test")


def raced(cause):
    """What anyio raises after it has raced the addresses of a name."""
    return caused(OSError("All connection attempts failed"), cause)


@pytest.mark.parametrize(
    ("cause", "unreachable", "fault"),
    [
        (os_error(errno.ENETUNREACH), True, False),
        (raced(os_error(errno.ENETUNREACH)), True, False),
        (
            raced(ExceptionGroup("", [os_error(errno.EHOSTUNREACH), os_error(errno.EPERM)])),
            True,
            False,
        ),
        (raced(ExceptionGroup("", [os_error(errno.ENETUNREACH), refused()])), False, True),
        (ExceptionGroup("", [os_error(errno.EACCES), os_error(errno.EMFILE)]), False, False),
        (refused(), False, True),
        (None, False, True),
    ],
)
def test_causes(cause, unreachable, fault):
    """The causes of an HTTP client's error say why it could not connect, however they are wrapped;
    of several addresses, an error that the destination caused counts more."""
    for how in ("__cause__", "__context__"):
        error = httpx.ConnectError("not connected")
        setattr(error, how, cause)
        verdict = HttpClassifier(frozenset())(error)
        assert (verdict.unreachable, verdict.fault, verdict.again) == (unreachable, fault, "always")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_http_over_anyio(dead_port, backend):
    """Without HTTP too, the errors behind anyio's are classified: one has no route, the other
    refuses, and both are faults after which any call may be retried."""
    service = [Instance(NOWHERE, dead_port), Instance("127.0.0.1", dead_port)]
    made = lbclient.Balancer(service, retry=NO_BUDGET, breaker=None, strategy="round-robin")

    async def dial(instance):
        async with await anyio.connect_tcp(instance.address, instance.port):
            pass

    async def calls():
        for _ in range(4):
            with pytest.raises(OSError, match="attempts failed"):
                await made.acall(dial)

    anyio.run(calls, backend=backend)
    lost, refusing = made.snapshot().instances
    assert lost.attempts + refusing.attempts == 12
    assert refusing.failures == refusing.attempts
    assert 0 < lost.failures < lost.attempts


WAYS = {
    "sync": (World(), {}),
    "asyncio": (World("asyncio"), {}),
    "trio": (World("trio"), {}),
    "sync-factory": (World(), {"transport": lambda _: httpx.HTTPTransport()}),
    "asyncio-factory": (World("asyncio"), {"transport": lambda _: httpx.AsyncHTTPTransport()}),
    "trio-factory": (World("trio"), {"transport": lambda _: httpx.AsyncHTTPTransport()}),
}


@pytest.mark.parametrize("way", WAYS)
def test_over_http(servers, way):
    """Over HTTP, with each transport: an instance without a route fails no POST without any retry
    budget, and leaves the rotation."""
    world, options = WAYS[way]
    trio = servers(tells_port, tells_port, tells_port)
    service = [f"http://{NOWHERE}:{trio[0].port}", *urls(trio)]
    with world.client(service, retry=NO_BUDGET, strategy="round-robin", **options) as client:
        assert {client.post("/").text for _ in range(40)} == {str(one.port) for one in trio}
        told = client.balancer.snapshot().instances
    assert [(one.failures, one.breaker) for one in told] == [(5, "open"), *[(0, "closed")] * 3]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_can_be_reached_over_http(way):
    """Over HTTP, with each transport: while there is no route to any instance, none is charged."""
    world, options = WAYS[way]
    service = [f"http://{NOWHERE}:{port}" for port in (1, 2, 3)]
    with world.client(service, retry=NO_BUDGET, **options) as client:
        for _ in range(10):
            with pytest.raises(httpx.ConnectError):
                client.post("/")
        told = client.balancer.snapshot().instances
    assert [(one.failures, one.breaker) for one in told] == [(0, "closed")] * 3


def test_over_httpx2(servers):
    """The same over httpx2."""
    pair = servers(tells_port, tells_port)
    service = [f"http://{NOWHERE}:{pair[0].port}", *urls(pair)]
    with lbclient.httpx2.Client(service, retry=NO_BUDGET, strategy="round-robin") as client:
        assert {client.post("/").text for _ in range(40)} == {str(one.port) for one in pair}
        assert next(iter(client.balancer.snapshot().instances)).breaker == "open"


@worlds
@pytest.mark.parametrize("over", ["ours", "factory"])
@pytest.mark.parametrize("first", ["dead", "nowhere"])
def test_an_address_without_a_route_beside_one_that_refuses(world, dead_port, over, first):
    """Of an instance with several addresses, the answer of one that can be reached counts: it
    refuses, so the instance is at fault, even if no other instance is known."""
    addresses = ("127.0.0.1", NOWHERE) if first == "dead" else (NOWHERE, "127.0.0.1")
    one = Instance("a.test", dead_port, addresses=addresses)
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    options = {"transport": lambda _: kind()} if over == "factory" else {}
    with world.client([one], retry=None, breaker=None, **options) as client:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                client.get("/")
        assert client.balancer.snapshot().instances[0].failures == 3


# In a network of one's own: real routes that go and come back

SCRIPT = """
import json, logging, sys
from pathlib import Path
import anyio, httpx, lbclient
from tests.support.faults import enter_own_network, no_route

try:
    enter_own_network()
except OSError as error:
    sys.exit(f"cannot: {error}")
off = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
if off.exists():
    off.write_text("1")

from tests.support.http import serve, tells_port

logging.getLogger("lbclient").addHandler(logging.NullHandler())
POLICY = lbclient.RetryPolicy(backoff=0.0, backoff_max=0.0, budget=lbclient.RetryBudget(0.0, 0.0))
BREAKER = lbclient.BreakerPolicy(reset_timeout=60.0, reset_timeout_max=60.0)
LIMITS = httpx.Limits(max_keepalive_connections=0)  # an open connection would wait for its time-out
OPTIONS = {"retry": POLICY, "strategy": "round-robin", "breaker": BREAKER, "limits": LIMITS}

def told(client, served):
    snapshot = client.balancer.snapshot().instances
    return [sorted(set(served)), [(one.failures, one.breaker) for one in snapshot]]

def sync(service):
    def calls():
        served = []
        for _ in range(30):
            try:
                served.append(str(client.post("/").status_code))
            except httpx.TransportError as error:
                served.append(type(error).__name__)
        return told(client, served)

    with lbclient.Client(service, **OPTIONS) as client:
        first = calls()
        with no_route():
            down = calls()
        return [first, down, calls()]

async def tasks(service):
    async def calls():
        served = []
        for _ in range(30):
            try:
                served.append(str((await client.post("/")).status_code))
            except httpx.TransportError as error:
                served.append(type(error).__name__)
        return told(client, served)

    async with lbclient.AsyncClient(service, **OPTIONS) as client:
        first = await calls()
        with no_route():
            down = await calls()
        return [first, down, await calls()]

with serve(tells_port, tells_port) as servers:
    service = ["http://[::1]:80", *(one.url for one in servers)]
    loops = [anyio.run(tasks, service, backend=backend) for backend in ("asyncio", "trio")]
    print(json.dumps([sync(service), *loops]))
"""


def test_no_ipv6_and_then_no_network_at_all():
    """An instance with an IPv6 address on a host without IPv6 leaves the rotation. Then the whole
    network fails: every call fails, and no other instance is charged; when it is back, every call
    succeeds at once."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    root = Path(lbclient.__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    if done.stderr.startswith("cannot:"):
        pytest.skip(f"{NAMESPACE}: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "")
    others = [[0, "closed"]] * 2
    for first, down, after in json.loads(done.stdout):
        assert first == [["200"], [[5, "open"], *others]]
        assert down[0] == ["ConnectError"]
        assert down[1][1:] == others
        assert after == [["200"], [[5, "open"], *others]]
