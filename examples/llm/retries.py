"""What multiplies when the SDK retries too.

    python examples/llm/retries.py

All regions are at their limits. lbclient makes three attempts for each request that the SDK sends,
and by default the SDK sends three.
"""

from __future__ import annotations

import contextlib

import openai
from servers import MODEL, Endpoint

import lbclient
import lbclient.httpx2

RETRY = lbclient.RetryPolicy(unprocessed={429})


def requests_for_one_prompt(max_retries: int) -> int:
    """Send one prompt that no region answers, and return how many requests the regions get."""
    with Endpoint("Europe") as europe, Endpoint("America") as america:
        for region in (europe, america):
            region.answer_with(429, retry_after_ms="1")  # the SDK waits as long, before a retry
        with lbclient.httpx2.Client([europe.url, america.url], retry=RETRY) as http:
            client = openai.OpenAI(
                http_client=http, base_url=http.base_url, api_key="none", max_retries=max_retries
            )
            with contextlib.suppress(openai.RateLimitError):
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Where are you?"}]
                )
        return len(europe.requests) + len(america.requests)


if __name__ == "__main__":
    for retries in (openai.DEFAULT_MAX_RETRIES, 0):
        print(f"max_retries={retries}: {requests_for_one_prompt(retries)} requests for one prompt")
