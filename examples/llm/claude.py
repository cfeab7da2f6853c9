"""Two regions of Anthropic's API, each with a key and a base path of its own, behind one client.

    python examples/llm/claude.py

One region is overloaded. It answers 529 then, and its prompts go to the other region at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator

import anthropic
import httpx2
from servers import MODEL, Endpoint

import lbclient
import lbclient.httpx2

CALLS = 4
TIMEOUT = httpx2.Timeout(600, connect=2.0)
RETRY = lbclient.RetryPolicy(unprocessed={429, 529})  # these say that no prompt was worked on


@contextlib.contextmanager
def two_regions() -> Generator[list[lbclient.Instance]]:
    """Start two regions, of which one is overloaded, and return their instances."""
    with (
        Endpoint("Europe", key="key-of-europe", path="/anthropic") as europe,
        Endpoint("America", key="key-of-america") as america,
    ):
        america.answer_with(529)
        yield [
            lbclient.Instance.from_url(one.url, headers={"authorization": f"Bearer {one.key}"})
            for one in (europe, america)
        ]


def ask(client: anthropic.Anthropic, *, stream: bool) -> str:
    """Send a prompt, and return the answer."""
    if not stream:
        message = client.messages.create(
            model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "Where are you?"}]
        )
        return "".join(block.text for block in message.content if block.type == "text")
    with client.messages.stream(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "Where are you?"}]
    ) as events:
        return "".join(events.text_stream)


def sync() -> None:
    """Send prompts, half of them as streams, from one thread."""
    with (
        two_regions() as regions,
        lbclient.httpx2.Client(regions, retry=RETRY, latency="first-byte", timeout=TIMEOUT) as http,
    ):
        client = anthropic.Anthropic(
            http_client=http, base_url=http.base_url, api_key="replaced", max_retries=0
        )
        print("sync:", *[ask(client, stream=bool(call % 2)) for call in range(CALLS)])


async def ask_async(client: anthropic.AsyncAnthropic, *, stream: bool) -> str:
    """Send a prompt, and return the answer."""
    if not stream:
        message = await client.messages.create(
            model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "Where are you?"}]
        )
        return "".join(block.text for block in message.content if block.type == "text")
    async with client.messages.stream(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "Where are you?"}]
    ) as events:
        return "".join([text async for text in events.text_stream])


async def on_an_event_loop() -> None:
    """Send all prompts at the same time."""
    with two_regions() as regions:
        async with lbclient.httpx2.AsyncClient(
            regions, retry=RETRY, latency="first-byte", timeout=TIMEOUT
        ) as http:
            client = anthropic.AsyncAnthropic(
                http_client=http, base_url=http.base_url, api_key="replaced", max_retries=0
            )
            asked = [ask_async(client, stream=bool(call % 2)) for call in range(CALLS)]
            print("async:", *await asyncio.gather(*asked))


if __name__ == "__main__":
    sync()
    asyncio.run(on_an_event_loop())
