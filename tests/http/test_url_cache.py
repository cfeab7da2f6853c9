"""URLs that were requested before are not parsed again, and mean the same as if they were."""

import httpx
import pytest

import lbclient
from lbclient.http import request_cache

OWN = "http://10.0.0.1:8080"
PATHS = ["/x", "x", "", "/", "/a/../b", "/x?a=1&b=2", "?q=1", "/%41", "/ä ö", f"{OWN}/y", "/x#f"]


@pytest.fixture
def client():
    with lbclient.Client(f"{OWN}/base") as client:
        yield client


def urls_of(client, path, **options):
    return [client.build_request("GET", path, **options).url for _ in range(3)]


@pytest.mark.parametrize("path", PATHS)
def test_the_same_url_as_httpx(client, path):
    """A path means what it means to httpx, the first time and every other time."""
    with httpx.Client(base_url=f"{OWN}/base") as bare:
        expected = bare.build_request("GET", path).url
    assert urls_of(client, path) == [expected] * 3


def test_parameters_do_not_stick(client):
    """Parameters of one request, or of the client, do not affect the next request."""
    assert str(client.build_request("GET", "/x", params={"a": "1"}).url).endswith("/x?a=1")
    assert str(client.build_request("GET", "/x").url).endswith("/x")
    assert str(client.build_request("GET", "/x", params={"a": "2"}).url).endswith("/x?a=2")
    client.params = {"c": "3"}
    assert str(client.build_request("GET", "/x").url).endswith("/x?c=3")
    assert str(client.build_request("GET", "/y").url).endswith("/y?c=3")
    client.params = {}
    assert str(client.build_request("GET", "/x").url).endswith("/x")
    assert str(client.build_request("GET", "/y").url).endswith("/y")


def test_another_base_is_another_url(client):
    """A base URL that is set later applies at once."""
    assert urls_of(client, "/x")[-1].path == "/base/x"
    client.base_url = f"{OWN}/other"
    assert [url.path for url in urls_of(client, "/x")] == ["/other/x"] * 3


def test_many_paths_are_forgotten_again(client):
    """S7: a different path for every request does not make the cache grow without limit."""
    for number in range(3 * request_cache._MOST):
        assert client.build_request("GET", f"/{number}").url.path == f"/base/{number}"
    assert len(client._request_cache._url_cache._state[1]) <= request_cache._MOST


@pytest.mark.anyio
async def test_the_async_client_does_the_same():
    """The async client caches URLs in the same way."""
    async with lbclient.AsyncClient(f"{OWN}/base") as client:
        assert {str(url) for url in urls_of(client, "/x")} == {f"{OWN}/base/x"}
        assert "/x" in client._request_cache._url_cache._state[1]
