"""The guard: which discovered addresses may be connected to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.discovery.guard import Guard

REFUSED = [
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("::1", "loopback"),
    ("169.254.0.1", "link-local"),
    ("fe80::1", "link-local"),
    ("224.0.0.251", "multicast"),
    ("ff02::1", "multicast"),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "unspecified"),
    ("::", "unspecified"),
    ("255.255.255.255", "broadcast"),
    ("169.254.169.254", "a cloud metadata address"),
    ("fd00:ec2::254", "a cloud metadata address"),
    ("fd20:ce::254", "a cloud metadata address"),
    ("100.100.100.200", "a cloud metadata address"),
]
WRAPPED = [
    ("::ffff:{}", "IPv4-mapped"),
    ("::ffff:0:{}", "IPv4-translated"),
    ("::{}", "IPv4-compatible"),
    ("64:ff9b::{}", "NAT64"),
    ("64:ff9b:1::{}", "NAT64 by a prefix of one's own"),
]
HARMLESS = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "8.8.8.8",
    "fd00::1",
    "2001:db8::1",
]


@pytest.mark.parametrize(("address", "kind"), REFUSED)
def test_dangerous_address_is_refused(address, kind):
    """S1, D18: a loopback, link-local, multicast, unspecified or metadata address is refused."""
    assert f"{address} is {kind};" in Guard().refuses(address)


@pytest.mark.parametrize("address", HARMLESS)
def test_private_address_is_let_through(address):
    """A private or public address is what services live on: it is not refused."""
    assert Guard().refuses(address) is None


@pytest.mark.parametrize(("address", "kind"), [one for one in REFUSED if ":" not in one[0]])
@pytest.mark.parametrize("form", [form for form, _ in WRAPPED])
def test_wrapped_ipv4_address_is_unwrapped_first(form, address, kind):
    """S1: the IPv6 forms of a refused IPv4 address are refused like itself."""
    assert f" is {kind};" in Guard().refuses(form.format(address))


def test_6to4_address_is_unwrapped_first():
    """S1: so is the form of 6to4, where the IPv4 address stands in the middle."""
    assert "is loopback" in Guard().refuses("2002:7f00:1::")


@pytest.mark.parametrize("form", [form for form, _ in WRAPPED])
def test_wrapped_harmless_address_is_let_through(form):
    """An IPv6 form of a harmless IPv4 address is harmless."""
    assert Guard().refuses(form.format("10.0.0.1")) is None


@pytest.mark.parametrize("address", [address for address, _ in REFUSED])
def test_what_the_error_says_allows_exactly_that(address):
    """The refusal tells the words that allow the address, and following them does."""
    reason = Guard().refuses(address)
    network = ipaddress.ip_network(reason.partition("allow=['")[2].partition("']")[0])
    guard = Guard([str(network)])
    for one, _ in REFUSED:
        assert (guard.refuses(one) is None) is (ipaddress.ip_address(one) in network)


def test_allowing_a_network_allows_its_wrapped_forms():
    """`allow=` names the network of the address itself; how DNS writes it does not matter."""
    guard = Guard(["127.0.0.0/8"])
    assert guard.refuses("::ffff:127.0.0.1") is None
    assert guard.refuses("64:ff9b::7f00:1") is None
    assert guard.refuses("::1") is not None


def test_allow_takes_one_network_as_a_string():
    """`allow="127.0.0.0/8"` is a list of one, not of its letters."""
    assert Guard("127.0.0.0/8").refuses("127.0.0.1") is None


@pytest.mark.parametrize("allow", ["127.0.0.1/8", "localhost", ["10.0.0.0/99"], [""]])
def test_bad_network_is_a_value_error(allow):
    """What is no network is refused at construction, by the argument's name."""
    with pytest.raises(ValueError, match=r"^allow must hold networks"):
        Guard(allow)


@pytest.mark.parametrize("allow", [5, [5], [ipaddress.ip_network("10.0.0.0/8")], [None]])
def test_network_of_the_wrong_type_is_a_type_error(allow):
    """What is no string is refused at construction, by the argument's name."""
    with pytest.raises(TypeError, match=r"^allow must hold networks"):
        Guard(allow)


def test_vet_parts_the_harmless_from_the_others():
    """Of several addresses the harmless ones are kept in order, the others come with reasons."""
    vetted, reasons = Guard().vet(["10.0.0.2", "127.0.0.1", "10.0.0.1", "::1"])
    assert vetted == ["10.0.0.2", "10.0.0.1"]
    assert [one.split()[0] for one in reasons] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("target", "within"),
    [
        ("example.com", True),
        ("a.example.com", True),
        ("a.b.example.com", True),
        ("badexample.com", False),
        ("example.com.evil.net", False),
        ("com", False),
    ],
)
def test_within_holds_targets_to_a_domain(target, within):
    """S12: with `within`, a target outside that domain is refused, by whole labels."""
    reason = Guard(within="example.com").refuses_name(target)
    assert (reason is None) is within


@given(st.ip_addresses())
def test_every_address_gets_a_verdict(address):
    """S1: no address makes the guard itself fail, and what refuses says how to allow."""
    reason = Guard().refuses(str(address))
    assert reason is None or "pass allow=['" in reason


@given(st.ip_addresses(v=4))
def test_wrapping_never_changes_the_verdict(address):
    """S1: whatever IPv4 address is refused is refused in each IPv6 form, and only then."""
    refused = Guard().refuses(str(address)) is not None
    for form, _ in WRAPPED:
        wrapped = form.format(address)
        if int(ipaddress.ip_address(wrapped)) > 1:
            assert (Guard().refuses(wrapped) is not None) is refused
