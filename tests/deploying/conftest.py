"""What the tests of deployments share."""

import pytest

from tests.support.deployments import Orders, Program


@pytest.fixture
def orders(tmp_path):
    """Three instances of the service `orders`."""
    made = Orders(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def run(tmp_path, orders):
    """Start a program of the page by its command. Each is ended."""
    started = []

    def start(words, **environment):
        started.append(Program(tmp_path, words, ORDERS=orders.url, **environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()
