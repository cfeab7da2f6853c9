"""The `openai` and `anthropic` SDKs over clients of `lbclient.httpx2`: sync, asyncio and trio."""

import contextlib
import functools
import io
import ssl
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx2
import pytest
import trustme

import lbclient
import lbclient.httpx2
from examples.llm.servers import MODEL, Endpoint
from lbclient import ConsistentHash, Instance, RetryPolicy
from tests.http.test_features import worlds
from tests.http.test_load_reports import Noted, until
from tests.http.test_unprocessed import in_order
from tests.support.http import head, resets, says
from tests.support.slow import slow_rows

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

# The SDKs leave a stream at its last event. Then a generator of theirs or of httpx2's is not
# finished, and trio warns about it.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator :ResourceWarning")

MESSAGES = [{"role": "user", "content": "Where are you?"}]
UNPROCESSED = RetryPolicy(backoff=0, unprocessed={429, 529})
AT_ONCE = 8


class OpenAI:
    """How the `openai` SDK is used."""

    kinds = openai.OpenAI, openai.AsyncOpenAI
    error = openai

    @staticmethod
    def ask(client, *, stream, **options):
        answer = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=stream, **options
        )
        if not stream:
            return answer.choices[0].message.content
        with answer as chunks:
            return "".join(one.choices[0].delta.content or "" for one in chunks)

    @staticmethod
    async def ask_async(client, *, stream, **options):
        answer = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=stream, **options
        )
        if not stream:
            return answer.choices[0].message.content
        async with answer as chunks:
            return "".join([one.choices[0].delta.content or "" async for one in chunks])


class Anthropic:
    """How the `anthropic` SDK is used."""

    kinds = anthropic.Anthropic, anthropic.AsyncAnthropic
    error = anthropic

    @staticmethod
    def ask(client, *, stream, **options):
        given = {"model": MODEL, "max_tokens": 9, "messages": MESSAGES, **options}
        if not stream:
            return client.messages.create(**given).content[0].text
        with client.messages.stream(**given) as events:
            return "".join(events.text_stream)

    @staticmethod
    async def ask_async(client, *, stream, **options):
        given = {"model": MODEL, "max_tokens": 9, "messages": MESSAGES, **options}
        if not stream:
            return (await client.messages.create(**given)).content[0].text
        async with client.messages.stream(**given) as events:
            return "".join([text async for text in events.text_stream])


class Prompter:
    """An SDK over a client."""

    def __init__(self, sdk, http, **options):
        sync, asynchronous = sdk.kinds
        given = {"base_url": http.client.base_url, "api_key": "key of the SDK", "max_retries": 0}
        self.sdk = sdk
        self.http = http
        self.client = (sync if http.portal is None else asynchronous)(
            http_client=http.client, **given, **options
        )

    def ask(self, *, stream=False, **options):
        """Send a prompt, and return the answer."""
        call = self.sdk.ask if self.http.portal is None else self.sdk.ask_async
        return self.http.run(functools.partial(call, self.client, stream=stream, **options))

    def ask_many(self, number, *, streams=True):
        """Send this many prompts, some at the same time, and perhaps half of them as streams."""
        modes = [streams and bool(place % 2) for place in range(number)]
        if self.http.portal is None:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                calls = [pool.submit(self.ask, stream=mode) for mode in modes]
                return [call.result() for call in calls]
        answers = []
        limiter = None

        async def one(mode):
            async with limiter:
                answers.append(await self.sdk.ask_async(self.client, stream=mode))

        async def every():
            nonlocal limiter
            limiter = anyio.CapacityLimiter(AT_ONCE)
            async with anyio.create_task_group() as group:
                for mode in modes:
                    group.start_soon(one, mode)

        self.http.run(every)
        return answers

    def stream(self):
        """Begin a stream of the `openai` SDK."""
        make = functools.partial(
            self.client.chat.completions.create, model=MODEL, messages=MESSAGES, stream=True
        )
        if self.http.portal is None:
            return make()
        return self.http.portal.wrap_async_context_manager(self.http.run(make))


@contextlib.contextmanager
def prompter(world, service, sdk=OpenAI, **options):
    """An SDK over a client; no attempt is in flight at its end."""
    given = {"timeout": httpx2.Timeout(30, connect=2), "retry": UNPROCESSED, **options}
    with world.entered(
        functools.partial(lbclient.httpx2.Client, service, **given),
        functools.partial(lbclient.httpx2.AsyncClient, service, **given),
    ) as http:
        yield Prompter(sdk, http)
        assert http.in_flight == 0


def instance_of(endpoint, **options):
    return Instance.from_url(
        endpoint.url, headers={"authorization": f"Bearer {endpoint.key}"}, **options
    )


@pytest.fixture
def endpoints():
    """Start endpoints: `endpoints("a", "b")`; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*names, **options):
            given = {"key": "k", **options}
            return [stack.enter_context(Endpoint(name, **given)) for name in names]

        yield start


def keys_of(endpoint):
    return {one.headers.get("authorization") for one in endpoint.requests}


# Unlike endpoints


@worlds
@pytest.mark.parametrize(
    ("sdk", "over_tls"),
    [(OpenAI, "limited"), *slow_rows((OpenAI, "answering"), (Anthropic, "answering"))],
)
def test_unlike_endpoints(endpoints, world, sdk, over_tls):
    """Of three endpoints with a scheme, base path, Host and key of their own, one answers 429 with
    `Retry-After` and one dies: no prompt fails, the first is asked once, and each gets its key."""
    authority, server, client = trustme.CA(), *(ssl.SSLContext(one) for one in SIDES)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    tls = {over_tls: server}
    (answering,) = endpoints("answering", key="1", path="/v1", tls=tls.get("answering"))
    (limited,) = endpoints("limited", key="2", path="/openai/v1", tls=tls.get("limited"))
    (dying,) = endpoints("dying", key="3")
    every = [answering, limited, dying]
    with prompter(world, [instance_of(one) for one in every], sdk, verify=client) as prompts:
        first = {prompts.ask(stream=bool(call % 2)) for call in range(6)}
        assert first == {f"This is {one.name}." for one in every}
        dying.stop()
        limited.answer_with(429, retry_after="30")
        limited.requests.clear()
        answers = [prompts.ask(stream=bool(call % 2)) for call in range(6)]
        answers += prompts.ask_many(194)
    assert answers == ["This is answering."] * 200
    assert len(limited.requests) == 1
    for endpoint in every:
        assert keys_of(endpoint) == {f"Bearer {endpoint.key}"}
        assert {one.headers["host"] for one in endpoint.requests} == {
            endpoint.url.split("/")[2],
        }


SIDES = ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT


@worlds
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("sdk", "status"), [(OpenAI, 429), (Anthropic, 429), (Anthropic, 529)])
def test_refused_prompts_go_elsewhere(endpoints, world, sdk, status, stream):
    """A prompt that an endpoint did not work on is answered by another one, and the SDK does not
    see the refusal."""
    refusing, answering = endpoints("refusing", "answering")
    refusing.answer_with(status)
    service = [instance_of(refusing), instance_of(answering, priority=1)]
    with prompter(world, service, sdk) as prompts:
        assert prompts.ask(stream=stream) == "This is answering."
    assert len(refusing.requests) == len(answering.requests) == 1
    assert refusing.requests[0].body == answering.requests[0].body


@worlds
def test_an_upload_goes_elsewhere(servers, world):
    """C12: a file that one endpoint refuses is sent whole to another one."""
    stored = b'{"id": "file-1", "object": "file"}'
    pair = servers(says(429), says(200, stored, Content_Type="application/json"))
    refusing, storing = pair
    content = b"line\n" * 20_000
    with prompter(world, in_order(pair)) as prompts:
        upload = functools.partial(
            prompts.client.files.create, file=io.BytesIO(content), purpose="batch"
        )
        assert prompts.http.run(upload).id == "file-1"
    assert refusing.requests[0].body == storing.requests[0].body
    assert content in storing.requests[0].body


@worlds
def test_a_fallback(endpoints, world):
    """An endpoint with a higher priority gets prompts only while no other can be used."""
    own, hosted = endpoints("own", "hosted")
    service = [instance_of(own), instance_of(hosted, priority=1)]
    with prompter(world, service) as prompts:
        assert {prompts.ask() for _ in range(5)} == {"This is own."}
        own.answer_with(429, retry_after="30")
        assert {prompts.ask() for _ in range(5)} == {"This is hosted."}
        own.recover()
        prompts.http.client.balancer.admit(service[0])
        assert {prompts.ask() for _ in range(5)} == {"This is own."}
    assert len(own.requests) == 11


@worlds
def test_a_prompt_that_may_be_sent_twice(endpoints, world):
    """A 502 is the result of a prompt, unless an Idempotency-Key says that it may be repeated."""
    failing, answering = endpoints("failing", "answering")
    failing.answer_with(502)
    service = [instance_of(failing), instance_of(answering, priority=1)]
    with prompter(world, service) as prompts:
        with pytest.raises(openai.InternalServerError):
            prompts.ask()
        headers = {"idempotency-key": "1"}
        assert prompts.ask(extra_headers=headers) == "This is answering."


@worlds
def test_endpoints_that_die_under_load(endpoints, world):
    """Of the prompts that may be sent twice none fails, while two of three endpoints die."""
    every = endpoints("a", "b", "c")
    policy = RetryPolicy(backoff=0, methods={"POST"}, budget=None)
    with (
        prompter(world, [instance_of(one) for one in every], retry=policy) as prompts,
        ThreadPoolExecutor(1) as pool,
    ):
        for dying in every[:2]:
            before = len(dying.requests)
            answers = pool.submit(prompts.ask_many, 60, streams=False)
            until(lambda one=dying, seen=before: len(one.requests) > seen + 5)
            dying.stop()
            assert len(answers.result()) == 60


# What the SDKs raise


@worlds
@pytest.mark.parametrize("sdk", [OpenAI, Anthropic])
def test_every_endpoint_is_at_its_limit(endpoints, world, sdk):
    """The error of the SDK has the last response, which tells of every attempt."""
    pair = endpoints("a", "b")
    for one in pair:
        one.answer_with(429)
    with (
        prompter(world, [instance_of(one) for one in pair], sdk) as prompts,
        pytest.raises(sdk.error.RateLimitError) as caught,
    ):
        prompts.ask()
    info = lbclient.call_info(caught.value.response)
    assert [one.status for one in info.attempts] == [429] * 3
    assert info.stopped == "attempts"


@worlds
@pytest.mark.parametrize("sdk", [OpenAI, Anthropic])
def test_no_endpoint_can_be_used(endpoints, world, sdk):
    """A connection error of the SDK has ours as its cause, with every attempt."""
    (only,) = endpoints("only")
    only.stop()
    service = [instance_of(only)]
    with prompter(world, service, sdk) as prompts:
        with pytest.raises(sdk.error.APIConnectionError) as caught:
            prompts.ask()
        assert isinstance(caught.value.__cause__, httpx2.ConnectError)
        assert len(lbclient.call_info(caught.value.__cause__).attempts) == 3
        prompts.http.client.balancer.eject(service[0], 60)
        with pytest.raises(sdk.error.APIConnectionError) as caught:
            prompts.ask()
    assert isinstance(caught.value.__cause__, lbclient.NoInstanceAvailable)


def broken_stream(prompts):
    """The error that ends a stream: the SDK raises it, or an error of its own with it as the
    cause."""
    with pytest.raises((prompts.sdk.error.APIConnectionError, httpx2.TransportError)) as caught:
        prompts.ask(stream=True)
    error = caught.value
    return error if isinstance(error, httpx2.TransportError) else error.__cause__


@worlds
@pytest.mark.parametrize("sdk", [OpenAI, Anthropic])
def test_the_deadline_ends_a_stream(endpoints, world, sdk):
    """A stream that is not finished in time ends with `DeadlineExceeded`."""
    (stalling,) = endpoints("stalling")
    stalling.pause()
    policy = RetryPolicy(deadline=0.2)
    with prompter(world, [instance_of(stalling)], sdk, retry=policy) as prompts:
        assert isinstance(broken_stream(prompts), lbclient.DeadlineExceeded)


# Streams


def begins(connection, _):
    """Send the head of a stream and one token, then die."""
    event = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "This "}}]}\n\n'
    fields = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
    connection.send(head(200, fields) + b"%x\r\n%s\r\n" % (len(event), event))
    connection.reset()


@worlds
def test_a_stream_that_breaks(servers, world):
    """A stream that has begun is not continued elsewhere."""
    _, other = pair = servers(begins, begins)
    policy = RetryPolicy(methods={"POST"})
    with prompter(world, in_order(pair), retry=policy, latency="first-byte") as prompts:
        assert isinstance(broken_stream(prompts), httpx2.NetworkError)
        failures = [one.failures for one in prompts.http.client.balancer.snapshot().instances]
    assert (other.hits, failures) == (0, [1, 0])


def only_a_head(connection, request):
    """Send the head of a stream, then die."""
    fields = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
    connection.send(head(200, fields))
    resets(connection, request)


@worlds
def test_a_stream_that_breaks_before_its_first_token(servers, endpoints, world):
    """With `latency="first-byte"`, a stream without a first token is retried as any other call."""
    (broken,), (answering,) = servers(only_a_head), endpoints("answering")
    service = [Instance(broken.host, broken.port), instance_of(answering, priority=1)]
    policy = RetryPolicy(methods={"POST"})
    with prompter(world, service, retry=policy, latency="first-byte") as prompts:
        assert prompts.ask(stream=True) == "This is answering."
    assert broken.hits == 1


def never_begins(connection, _):
    """Send the head of a stream, and then nothing."""
    fields = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
    connection.send(head(200, fields))
    connection.server.stopping.wait()


@worlds
def test_a_stream_whose_first_token_is_late(servers, endpoints, world):
    """With `latency="first-byte"`, `attempt_timeout` limits the time to the first token."""
    (stalling,), (answering,) = servers(never_begins), endpoints("answering")
    service = [Instance(stalling.host, stalling.port), instance_of(answering, priority=1)]
    policy = RetryPolicy(methods={"POST"}, attempt_timeout=0.2)
    with prompter(world, service, retry=policy, latency="first-byte") as prompts:
        assert prompts.ask(stream=True) == "This is answering."
    assert stalling.hits == 1


@worlds
def test_a_stream_that_is_left(endpoints, world):
    """An endpoint is busy until its stream is closed, also if it is left before its end."""
    (stalling,) = endpoints("stalling")
    stalling.pause()
    with prompter(world, [instance_of(stalling)]) as prompts:
        with prompts.stream():
            assert prompts.http.in_flight == 1
        assert prompts.http.in_flight == 0


@pytest.mark.anyio
async def test_a_stream_that_is_cancelled(endpoints):
    """C1: a task that is cancelled while it reads a stream gives its place back."""
    (stalling,) = endpoints("stalling")
    stalling.pause()
    async with lbclient.httpx2.AsyncClient([instance_of(stalling)]) as http:
        client = openai.AsyncOpenAI(
            http_client=http, base_url=http.base_url, api_key="none", max_retries=0
        )
        chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        with anyio.CancelScope() as scope:
            async for _ in chunks:
                scope.cancel()
        assert scope.cancelled_caught
        (one,) = http.balancer.snapshot().instances
        assert (one.in_flight, one.failures) == (0, 0)


# Sessions


class Listed:
    """Discovery that a test changes."""

    def __init__(self, instances):
        self.instances = instances

    def resolve(self):
        return lbclient.Answer(self.instances, ttl=3600)


@worlds
@pytest.mark.parametrize("leaving", ["leaves", "is ejected", "is at its limit"])
def test_sessions_stay(endpoints, world, leaving):
    """A session stays at its endpoint. While one of three endpoints is away, only its sessions
    move, and when it is back, they return."""
    three = endpoints("a", "b", "c")
    instances = [instance_of(one) for one in three]
    sessions = [f"session-{number}" for number in range(24)]
    listed = Listed(instances)
    with prompter(
        world,
        listed,
        strategy=ConsistentHash(load=2.0),
        key=lambda request: request.headers["x-session"],
        scheme="http",
    ) as prompts:
        balancer = prompts.http.client.balancer
        refresh = balancer.refresh if world.backend is None else balancer.arefresh

        def places():
            return {one: prompts.ask(extra_headers={"x-session": one}) for one in sessions}

        first = places()
        assert len(set(first.values())) == 3
        assert places() == first
        if leaving == "leaves":
            listed.instances = instances[1:]
            prompts.http.run(refresh)
        elif leaving == "is ejected":
            balancer.eject(instances[0], 600)
        else:
            three[0].answer_with(429, retry_after="30")
            while "resting" not in {one.standing for one in balancer.snapshot().instances}:
                places()
        moved = {first[one] for one, place in places().items() if place != first[one]}
        assert moved == {"This is a."}
        three[0].recover()
        listed.instances = instances
        prompts.http.run(refresh)
        balancer.admit(instances[0])
        assert places() == first


# Load reports


@worlds
def test_reports_of_load(endpoints, world):
    """An endpoint that reports its load as vLLM does is asked for it, and its strategy is told."""
    (busy,) = endpoints("busy")
    busy.headers["endpoint-load-metrics"] = (
        "TEXT named_metrics.num_requests_running=3, named_metrics.num_requests_waiting=4"
    )
    strategy = Noted()
    with prompter(world, [instance_of(busy)], strategy=strategy) as prompts:
        prompts.ask()
        prompts.ask(stream=True)
    assert {one.headers["endpoint-load-metrics-format"] for one in busy.requests} == {"TEXT"}
    assert [load.in_flight for _, load in strategy.told] == [7, 7]


def test_timeouts():
    """The SDKs take the timeouts of the client."""
    timeout = httpx2.Timeout(600, connect=2, pool=10)
    with lbclient.httpx2.Client("http://127.0.0.1:1", timeout=timeout) as http:
        for kind in (openai.OpenAI, anthropic.Anthropic):
            client = kind(http_client=http, base_url=http.base_url, api_key="none")
            assert client.timeout == timeout
    with lbclient.httpx2.Client("http://127.0.0.1:1") as http:
        client = openai.OpenAI(http_client=http, base_url=http.base_url, api_key="none")
        assert client.timeout.read == 5
