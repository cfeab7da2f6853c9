"""SDKs that take a client of httpx2, for type checkers: they accept `lbclient.httpx2`'s clients.

It is never run. Each `type: ignore` stands for an error that both must report.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

import anthropic
import openai
from mcp.client.streamable_http import streamable_http_client

import lbclient
import lbclient.httpx2


def clients() -> None:
    """The sync SDKs take a `Client`, and its `base_url`."""
    http = lbclient.httpx2.Client(["http://a.test/v1", "http://b.test/v1"])
    openai.OpenAI(http_client=http, base_url=http.base_url, max_retries=0)
    anthropic.Anthropic(http_client=http, base_url=http.base_url, max_retries=0)
    openai.AsyncOpenAI(http_client=http)  # type: ignore[arg-type]
    anthropic.AsyncAnthropic(http_client=http)  # type: ignore[arg-type]
    openai.OpenAI(http_client=lbclient.Client("http://a.test"))  # type: ignore[arg-type]


async def async_clients() -> None:
    """The async SDKs take an `AsyncClient`."""
    http = lbclient.httpx2.AsyncClient(["http://a.test/v1", "http://b.test/v1"])
    openai.AsyncOpenAI(http_client=http, base_url=http.base_url, max_retries=0)
    anthropic.AsyncAnthropic(http_client=http, base_url=http.base_url, max_retries=0)
    async with streamable_http_client(f"{http.base_url}mcp", http_client=http):
        pass
    openai.OpenAI(http_client=http)  # type: ignore[arg-type]
    anthropic.Anthropic(http_client=http)  # type: ignore[arg-type]


def outcomes(client: openai.OpenAI, error: openai.APIError) -> None:
    """`call_info` takes what the SDKs pass on: a response, and the cause of an error."""
    raw = client.models.with_raw_response.list()
    assert_type(lbclient.call_info(raw.http_response), lbclient.CallInfo)
    if error.__cause__ is not None:
        assert_type(lbclient.call_info(error.__cause__), lbclient.CallInfo)
