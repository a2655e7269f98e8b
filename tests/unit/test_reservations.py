"""``flanpy reserve`` and ``release``: what they write, and everything that they refuse, over the store in memory."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from flanpy.cli.release import release
from flanpy.cli.reserve import parse_address, reserve
from flanpy.core.codec import encode_attributes
from flanpy.core.reservations import parse_subnets
from flanpy.errors import ConfigError, LeaseError, StoreError, UsageError
from flanpy.model import NodeAttributes, Record, RecordSet, Subnets
from flanpy.stores.memory import MemoryServer, MemoryStore

NODE, OTHER = IPv4Address("192.0.2.7"), IPv4Address("192.0.2.8")
KEY = "subnets/10.5.7.0-24"


def attributes(address: IPv4Address) -> bytes:
    return encode_attributes(NodeAttributes(address))


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.put("config", b'{"Network": "10.5.0.0/16"}')
    return made


def test_a_reservation_is_a_lease_without_expiry_for_that_address(store: MemoryStore) -> None:
    assert reserve(store, "/p", "10.5.7.0/24", NODE) == Subnets(IPv4Network("10.5.7.0/24"))
    record = store.read(KEY)
    assert record is not None
    assert (record.value, record.etcd_lease_id) == (b'{"PublicIP":"192.0.2.7","PublicIPv6":null}', 0)


def test_the_node_s_own_lease_becomes_a_reservation_with_all_that_it_says(store: MemoryStore) -> None:
    value = attributes(NODE)[:-1] + b',"BackendData":{"flanpy":{"node":"n","features":[]}}}'
    store.create(KEY, value, 60)
    reserve(store, "/p", "10.5.7.0/24", NODE)
    record = store.read(KEY)
    assert record is not None
    assert (record.value, record.etcd_lease_id) == (value, 0)


@pytest.mark.parametrize(
    ("subnet", "address", "kind", "message"),
    [
        ("10.5.9.0/24", NODE, LeaseError, "10.5.9.0/24 is taken: 192.0.2.8 has it"),
        (
            "10.5.7.0/24",
            OTHER,
            LeaseError,
            "192.0.2.8 has 10.5.9.0/24 already; a node has one: `flanpy release 10.5.9.0/24` first",
        ),
        ("10.6.7.0/24", NODE, UsageError, "gives no node 10.6.7.0/24; right would be a /24 from 10.5.1.0/24 to 10.5.255.0/24"),
        ("10.5.7.0/25", NODE, UsageError, "right would be a /24"),
        ("10.5.0.0/24", NODE, UsageError, "right would be a /24 from 10.5.1.0/24"),
        ("10.5.7.1/24", NODE, UsageError, "did you mean 10.5.7.0/24?"),
        ("fd00::/64", NODE, UsageError, "gives no node fd00::/64"),
        ("10.5.7.0/24,10.5.8.0/24", NODE, UsageError, "names two IPv4 subnets"),
        ("x", NODE, UsageError, "'x' is not a subnet such as 10.244.7.0/24"),
        ("10.5.66.0/24", NODE, LeaseError, "holds something that is no lease"),
    ],
)
def test_what_is_taken_or_does_not_fit_is_refused(
    store: MemoryStore, subnet: str, address: IPv4Address, kind: type[Exception], message: str
) -> None:
    store.create("subnets/10.5.9.0-24", attributes(OTHER), 60)
    store.put("subnets/10.5.66.0-24", b"{")
    before = store.list("")
    with pytest.raises(kind) as refused:
        reserve(store, "/p", subnet, address)
    assert message in str(refused.value)
    assert store.list("") == before


def test_an_overlap_with_a_lease_of_another_size_is_refused(store: MemoryStore) -> None:
    store.put("subnets/10.5.0.0-20", attributes(OTHER))
    with pytest.raises(LeaseError, match=r"10\.5\.7\.0/24 overlaps 10\.5\.0\.0/20, which 192\.0\.2\.8 has"):
        reserve(store, "/p", "10.5.7.0/24", NODE)


def test_without_a_network_config_nothing_can_be_reserved() -> None:
    with pytest.raises(ConfigError, match="etcd has no network config at /p/config"):
        reserve(MemoryStore(), "/p", "10.5.7.0/24", NODE)


class Racing(MemoryStore):
    """A store in which somebody else is faster after every listing."""

    def list(self, directory: str) -> RecordSet:
        """The records, and then another takes the key."""
        found = super().list(directory)
        self.put(KEY, attributes(OTHER))
        return found


def test_a_lost_race_writes_nothing_and_says_so() -> None:
    store = Racing(MemoryServer())
    store.put("config", b'{"Network": "10.5.0.0/16"}')
    with pytest.raises(StoreError, match="changed by somebody else meanwhile; nothing written"):
        reserve(store, "/p", "10.5.7.0/24", NODE)
    with pytest.raises(StoreError, match="nothing deleted"):
        release(store, "10.5.7.0/24", sure=True)
    assert holder(store) == attributes(OTHER)


def holder(store: MemoryStore) -> bytes | None:
    record: Record | None = store.read(KEY)
    return record.value if record else None


def test_a_reservation_is_released_without_asking(store: MemoryStore) -> None:
    reserve(store, "/p", "10.5.7.0/24", NODE)
    assert release(store, "10.5.7.0/24", sure=False) == Subnets(IPv4Network("10.5.7.0/24"))
    assert holder(store) is None


def test_a_living_lease_is_released_only_with_yes(store: MemoryStore) -> None:
    store.create(KEY, attributes(NODE), 3600)
    with pytest.raises(LeaseError, match=r"10\.5\.7\.0/24 is leased for another .* --yes"):
        release(store, "10.5.7.0/24", sure=False)
    assert holder(store) is not None
    release(store, "10.5.7.0/24", sure=True)
    assert holder(store) is None


def test_what_nobody_has_cannot_be_released(store: MemoryStore) -> None:
    with pytest.raises(LeaseError, match=r"10\.5\.7\.0/24 is not leased: etcd has no subnets/10\.5\.7\.0-24"):
        release(store, "10.5.7.0/24", sure=True)


def test_a_dual_stack_subnet_is_written_with_a_comma() -> None:
    assert parse_subnets("10.5.7.0/24,fd00:7::/64") == Subnets(IPv4Network("10.5.7.0/24"), IPv6Network("fd00:7::/64"))


def test_a_wrong_address_is_said() -> None:
    with pytest.raises(UsageError, match="--public-ip: 'host' is not an address"):
        parse_address("host")
    with pytest.raises(UsageError, match="--public-ip: 'fe80::1%eth0' is not an address"):
        parse_address("fe80::1%eth0")
