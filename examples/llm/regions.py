"""Three regions of one API, each with a key and a base path of its own, behind one OpenAI client.

    python examples/llm/regions.py

One region reaches its rate limit, and another one goes down. No call fails: each call that meets
such a region goes to another one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterable, Iterator

import httpx2
import openai
from servers import MODEL, Endpoint

import lbclient
import lbclient.httpx2

CALLS = 12
TIMEOUT = httpx2.Timeout(600, connect=2.0)
RETRY = lbclient.RetryPolicy(unprocessed={429})  # a 429 says that the prompt was not worked on


@contextlib.contextmanager
def three_regions() -> Generator[list[Endpoint]]:
    """Start three regions."""
    with (
        Endpoint("Europe", key="key-of-europe", path="/openai/v1") as europe,
        Endpoint("America", key="key-of-america", path="/v1") as america,
        Endpoint("Asia", key="key-of-asia") as asia,
    ):
        yield [europe, america, asia]


def instance_of(region: Endpoint) -> lbclient.Instance:
    """Return the instance for a region, with the header that holds its key."""
    headers = {"authorization": f"Bearer {region.key}"}
    return lbclient.Instance.from_url(region.url, headers=headers)


def scenes(regions: list[Endpoint]) -> Iterator[str]:
    """Make one region after another fail."""
    europe, _, asia = regions
    yield "all regions answer"
    europe.answer_with(429, retry_after="30")
    yield "Europe is at its limit"
    asia.stop()
    yield "Asia is down too"


def show(title: str, answers: Iterable[str]) -> None:
    """Print who has answered."""
    everything = list(answers)
    print(f"{title}: {len(everything)} answers: {', '.join(sorted(set(everything)))}")


def ask(client: openai.OpenAI, *, stream: bool) -> str:
    """Send a prompt, and return the answer."""
    if not stream:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Where are you?"}]
        )
        return answer.choices[0].message.content or ""
    with client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Where are you?"}], stream=True
    ) as chunks:
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def sync() -> None:
    """Send prompts, half of them as streams, from one thread."""
    with three_regions() as regions:
        instances = [instance_of(region) for region in regions]
        with lbclient.httpx2.Client(
            instances, retry=RETRY, latency="first-byte", timeout=TIMEOUT
        ) as http:
            client = openai.OpenAI(
                http_client=http, base_url=http.base_url, api_key="replaced", max_retries=0
            )
            for scene in scenes(regions):
                show(
                    f"sync, {scene}", [ask(client, stream=bool(call % 2)) for call in range(CALLS)]
                )


async def ask_async(client: openai.AsyncOpenAI, *, stream: bool) -> str:
    """Send a prompt, and return the answer."""
    if not stream:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Where are you?"}]
        )
        return answer.choices[0].message.content or ""
    async with await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Where are you?"}], stream=True
    ) as chunks:
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def on_an_event_loop() -> None:
    """Send all prompts of a scene at the same time."""
    with three_regions() as regions:
        instances = [instance_of(region) for region in regions]
        async with lbclient.httpx2.AsyncClient(
            instances, retry=RETRY, latency="first-byte", timeout=TIMEOUT
        ) as http:
            client = openai.AsyncOpenAI(
                http_client=http, base_url=http.base_url, api_key="replaced", max_retries=0
            )
            for scene in scenes(regions):
                asked = [ask_async(client, stream=bool(call % 2)) for call in range(CALLS)]
                show(f"async, {scene}", await asyncio.gather(*asked))


if __name__ == "__main__":
    sync()
    asyncio.run(on_an_event_loop())
