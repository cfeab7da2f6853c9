"""Three servers with caches of prompts (vLLM, for example), behind one OpenAI client.

    python examples/llm/affinity.py

All prompts of a session go to one server, and so do prompts that begin in the same way. A server
that would get more than twice its share passes prompts on to another one. When a server leaves,
only its own sessions move.
"""

from __future__ import annotations

import contextlib
import json

import httpx2
import openai
from servers import MODEL, Endpoint

import lbclient
import lbclient.httpx2

TIMEOUT = httpx2.Timeout(600, connect=2.0)
SESSIONS = [f"session-{number}" for number in range(30)]
STREAMS = 9
PROMPT = "Answer in the words of the following manual. " + "All valves are to be closed. " * 20


def key_of(request: httpx2.Request) -> str | None:
    """Return the session of a request, or the first 256 characters of its prompt."""
    if session := request.headers.get("x-session"):
        return str(session)
    if not request.url.path.endswith("/chat/completions"):
        return None  # any server
    return json.dumps(json.loads(request.content)["messages"])[:256]


def ask(client: openai.OpenAI, session: str) -> str:
    """Send a prompt of a session, and return the answer."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Where are you?"}],
        extra_headers={"x-session": session},
    )
    return answer.choices[0].message.content or ""


def ask_all(client: openai.OpenAI) -> dict[str, str]:
    """Send one prompt of each session, and return the answers."""
    return {session: ask(client, session) for session in SESSIONS}


def moved(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the answers that sessions used to get and get no more."""
    return {before[session] for session in SESSIONS if before[session] != after[session]}


def main() -> None:
    """Show which server gets which prompt."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Endpoint(f"server {number}")) for number in (1, 2, 3)]
        instances = [lbclient.Instance.from_url(server.url) for server in servers]
        http = stack.enter_context(
            lbclient.httpx2.Client(
                instances,
                strategy=lbclient.ConsistentHash(load=2.0),
                key=key_of,
                timeout=TIMEOUT,
            )
        )
        client = openai.OpenAI(
            http_client=http, base_url=http.base_url, api_key="none", max_retries=0
        )

        first = ask_all(client)
        print("sessions are at:", sorted(set(first.values())))
        print("asked again, sessions have left:", moved(first, ask_all(client)))

        http.balancer.eject(instances[0], 600)
        print("server 1 is taken out; sessions have left:", moved(first, ask_all(client)))
        http.balancer.admit(instances[0])

        for server in servers:
            server.requests.clear()
            server.pause()
        for question in range(STREAMS):
            stack.enter_context(
                client.chat.completions.create(
                    model=MODEL,
                    messages=[
                        {"role": "system", "content": PROMPT},
                        {"role": "user", "content": f"Question {question}"},
                    ],
                    stream=True,
                )
            )
        at_once = sorted((len(server.requests) for server in servers), reverse=True)
        print(f"{STREAMS} prompts with one beginning, all at once, are at: {at_once}")


if __name__ == "__main__":
    main()
