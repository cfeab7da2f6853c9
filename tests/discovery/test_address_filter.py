"""The address filter: which discovered addresses may be connected to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.discovery.address_filter import AddressFilter

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
    assert f"{address} is {kind};" in AddressFilter().refuses(address)


@pytest.mark.parametrize(
    ("address", "kind"),
    [one for one in REFUSED if ":" in one[0]] + [("::ffff:127.0.0.1", "loopback")],
)
@pytest.mark.parametrize("zone", ["2", "eth0"])
def test_zone_of_an_address_changes_nothing(address, kind, zone):
    """An IPv6 address with a zone is refused, and allowed, like the same address without it."""
    full = f"{address}%{zone}"
    said = AddressFilter().refuses(full)
    assert f"{full} is {kind};" in said
    allowed = said.partition("allow=['")[2].partition("'")[0]
    assert AddressFilter([allowed]).refuses(full) is None


@pytest.mark.parametrize("address", HARMLESS)
def test_private_address_is_let_through(address):
    """Services run on private and public addresses, so these are accepted."""
    assert AddressFilter().refuses(address) is None


@pytest.mark.parametrize(("address", "kind"), [one for one in REFUSED if ":" not in one[0]])
@pytest.mark.parametrize("form", [form for form, _ in WRAPPED])
def test_wrapped_ipv4_address_is_unwrapped_first(form, address, kind):
    """S1: the IPv6 forms of a refused IPv4 address are refused like itself."""
    assert f" is {kind};" in AddressFilter().refuses(form.format(address))


def test_6to4_address_is_unwrapped_first():
    """S1: the IPv4 address in the middle of a 6to4 address is checked too."""
    assert "is loopback" in AddressFilter().refuses("2002:7f00:1::")


def teredo_server(address: str) -> str:
    """Make a Teredo address (RFC 4380) of a harmless client at this server."""
    return str(ipaddress.IPv6Address((0x20010000 << 96) | (packed(address) << 64) | 0xF5FFFFFE))


def teredo_client(address: str) -> str:
    """Make a Teredo address of this client, whose bits are inverted, at a harmless server."""
    inverted = packed(address) ^ 0xFFFFFFFF
    return str(ipaddress.IPv6Address((0x20010000 << 96) | (0x0A000001 << 64) | inverted))


def isatap(identifier: int, prefix: str = "2001:db8::"):
    """Makes ISATAP addresses (RFC 5214) of this interface identifier under this prefix."""

    def made(address: str) -> str:
        high = int(ipaddress.IPv6Address(prefix))
        return str(ipaddress.IPv6Address(high | (identifier << 32) | packed(address)))

    return made


def nat64(length: int, prefix: str = "64:ff9b:1::", suffix: int = 0):
    """Makes IPv4-embedded addresses by a prefix of this length (RFC 6052, 2.2)."""

    def made(address: str) -> str:
        bits = f"{int(ipaddress.IPv6Address(prefix)):0128b}"[:length] + f"{packed(address):032b}"
        if length < 96:
            bits = bits[:64] + "00000000" + bits[64:]
        bits += f"{suffix:0128b}"[len(bits) :]
        return str(ipaddress.IPv6Address(int(bits, 2)))

    return made


def packed(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


EMBEDDED = {
    "teredo-server": teredo_server,
    "teredo-client": teredo_client,
    "isatap": isatap(0x00005EFE),
    "isatap-unique": isatap(0x02005EFE),
    "isatap-private": isatap(0x00005EFE, "fd00:1::"),
    "isatap-in-6to4": isatap(0x00005EFE, "2002:a00:1::"),
    "isatap-group": isatap(0x03005EFE),
    "nat64-48": nat64(48),
    "nat64-48-suffix": nat64(48, suffix=0x1234),
    "nat64-56": nat64(56, "64:ff9b:1:1200::"),
    "nat64-56-zero": nat64(56),
    "nat64-64": nat64(64, "64:ff9b:1:1234::"),
    "nat64-64-zero": nat64(64),
    "nat64-96": nat64(96, "64:ff9b:1:1234::"),
}


@pytest.mark.parametrize(
    ("address", "kind"),
    [one for one in REFUSED if ":" not in one[0] and one[1] != "unspecified"],
)
@pytest.mark.parametrize("form", EMBEDDED)
def test_embedded_ipv4_address_is_unwrapped(form, address, kind):
    """An IPv6 address that may stand for a refused IPv4 address is refused, with the same
    reason."""
    assert f" is {kind};" in AddressFilter().refuses(EMBEDDED[form](address))


@pytest.mark.parametrize("address", ["10.0.0.1", "192.0.2.1", "8.8.8.8", "10.0.0.0"])
@pytest.mark.parametrize("form", EMBEDDED)
def test_embedded_harmless_address_is_let_through(form, address):
    """An IPv6 address that stands for a harmless IPv4 address is accepted."""
    assert AddressFilter().refuses(EMBEDDED[form](address)) is None


@pytest.mark.parametrize("form", EMBEDDED)
def test_allowing_an_address_allows_the_forms_that_embed_it(form):
    """Allowing an IPv4 network also allows the IPv6 addresses that stand for its addresses."""
    assert AddressFilter(["127.0.0.0/8"]).refuses(EMBEDDED[form]("127.0.0.1")) is None


def test_permission_for_one_reading_does_not_cover_another():
    """An address with several embedded addresses is accepted only if none of them is refused."""
    address = "2001:0:7f00:1:0:0:5601:5601"  # Teredo: 127.0.0.1 serves 169.254.169.254
    assert "169.254.169.254/32" in AddressFilter(["127.0.0.0/8"]).refuses(address)
    assert AddressFilter(["127.0.0.0/8", "169.254.169.254/32"]).refuses(address) is None
    assert AddressFilter(["2001::/32"]).refuses(address) is None


def test_link_local_isatap_address_stays_link_local():
    """Allowing an embedded address does not allow the IPv6 address itself."""
    assert "link-local" in AddressFilter(["127.0.0.0/8"]).refuses("fe80::5efe:127.0.0.1")


@pytest.mark.parametrize("form", [form for form, _ in WRAPPED])
def test_wrapped_harmless_address_is_let_through(form):
    """An IPv6 form of a harmless IPv4 address is accepted."""
    assert AddressFilter().refuses(form.format("10.0.0.1")) is None


@pytest.mark.parametrize("address", [address for address, _ in REFUSED])
def test_what_the_error_says_allows_exactly_that(address):
    """The refusal says how to allow the address, and following this advice works."""
    reason = AddressFilter().refuses(address)
    network = ipaddress.ip_network(reason.partition("allow=['")[2].partition("']")[0])
    address_filter = AddressFilter([str(network)])
    for one, _ in REFUSED:
        assert (address_filter.refuses(one) is None) is (ipaddress.ip_address(one) in network)


def test_allowing_a_network_allows_its_wrapped_forms():
    """`allow=` names the network of the IPv4 address; the form in which DNS returns it does not
    matter."""
    address_filter = AddressFilter(["127.0.0.0/8"])
    assert address_filter.refuses("::ffff:127.0.0.1") is None
    assert address_filter.refuses("64:ff9b::7f00:1") is None
    assert address_filter.refuses("::1") is not None


def test_allow_takes_one_network_as_a_string():
    """`allow="127.0.0.0/8"` is one network, not a list of letters."""
    assert AddressFilter("127.0.0.0/8").refuses("127.0.0.1") is None


@pytest.mark.parametrize("allow", ["127.0.0.1/8", "localhost", ["10.0.0.0/99"], [""]])
def test_bad_network_is_a_value_error(allow):
    """A value that is not a network is refused at construction by an error that names the
    argument."""
    with pytest.raises(ValueError, match=r"^allow must contain networks"):
        AddressFilter(allow)


@pytest.mark.parametrize("allow", [5, [5], [ipaddress.ip_network("10.0.0.0/8")], [None]])
def test_network_of_the_wrong_type_is_a_type_error(allow):
    """A value that is not a string is refused at construction by an error that names the
    argument."""
    with pytest.raises(TypeError, match=r"^allow must contain networks"):
        AddressFilter(allow)


def test_vet_parts_the_harmless_from_the_others():
    """The harmless ones of several addresses are kept in order, the others are returned with
    reasons."""
    vetted, reasons = AddressFilter().vet(["10.0.0.2", "127.0.0.1", "10.0.0.1", "::1"])
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
    """S12: with `within`, a target outside that domain is refused; whole labels are compared."""
    reason = AddressFilter(within="example.com").refuses_name(target)
    assert (reason is None) is within


@given(st.ip_addresses())
def test_every_address_gets_a_verdict(address):
    """S1: no address makes the filter fail, and each refusal says how to allow the address."""
    reason = AddressFilter().refuses(str(address))
    assert reason is None or "pass allow=['" in reason


@given(st.ip_addresses(v=4))
def test_wrapping_never_changes_the_verdict(address):
    """S1: every refused IPv4 address is refused in each IPv6 form, and an accepted one in none."""
    refused = AddressFilter().refuses(str(address)) is not None
    for form, _ in WRAPPED:
        wrapped = form.format(address)
        if int(ipaddress.ip_address(wrapped)) > 1:
            assert (AddressFilter().refuses(wrapped) is not None) is refused
