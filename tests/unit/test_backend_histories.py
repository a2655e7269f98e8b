"""Whatever becomes of the leases: the plan of any backend never names our own subnet or a peer that has gone, and diffs converge.

Histories are random: leases come, change address, MAC and type, go, and carry rubbish.
"""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanpy import backends
from flanpy.core.membership import UDP, Membership, apply, from_records, view
from flanpy.core.reconcile import apply as applied
from flanpy.core.reconcile import diff
from flanpy.model import DesiredState, LocalFacts, NodeAttributes, Record, RecordChange, RecordSet, Subnets
from tests.support.backends import UPLINK, config, lease

KINDS = tuple(sorted(backends.BACKENDS))
KEY = "//////////////////////////////////////////8="
OWN_SUBNET = IPv4Network("10.5.1.0/24")
DATA = st.sampled_from(
    [
        None,
        '{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}',
        '{"VNI":1,"VtepMAC":"02:00:00:00:01:%02x"}',
        '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}',
        '{"VNI":9,"VtepMAC":"02:00:00:00:00:%02x"}',
        '{"VtepMAC":"ff:ff:ff:ff:ff:ff"}',
        '{"PublicKey":"%02xAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}',
        '{"PublicKey":"//////////////////////////////////////////8="}',
        '"text"',
        "[1]",
    ]
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["put", "put", "put", "delete", "rubbish"]),
        st.integers(1, 9),
        st.sampled_from([*KINDS, "gre", ""]),
        DATA,
    ),
    max_size=25,
)


def value(subnet: int, address: int, kind: str, data: str | None) -> bytes:
    text = "" if data is None else f',"BackendData":{data % subnet if "%" in data else data}'
    typed = f',"BackendType":"{kind}"' if kind else ""
    return f'{{"PublicIP":"192.0.2.{address}","PublicIPv6":null{typed}{text}}}'.encode()


def history(steps: list[tuple[int, str, int, str, str | None]]) -> tuple[Membership, set[IPv4Network]]:
    """The membership after all steps, and the subnets that somebody holds then."""
    members, held = from_records(RecordSet(1, ())), set()
    for revision, (number, what, address, kind, data) in enumerate(steps, 2):
        key, subnet = f"subnets/10.5.{number}.0-24", IPv4Network(f"10.5.{number}.0/24")
        if what == "delete":
            held.discard(subnet)
            record = None
        else:
            held.add(subnet)
            raw = b"{" if what == "rubbish" else value(number, address, kind, data)
            record = Record(key, raw, revision, revision, 7)
        members = apply(members, [RecordChange(revision, key, record)])
    return members, held


def own(kind: str) -> NodeAttributes:
    base = NodeAttributes(IPv4Address("192.0.2.1"))
    return backends.find(kind).attributes(base, config(kind), LocalFacts("node", public_key=KEY))


def planned(kind: str, members: Membership) -> DesiredState:
    backend, network = backends.find(kind), config(kind)
    ours = replace(lease(kind, str(OWN_SUBNET), "192.0.2.1"), attributes=own(kind))
    seen = backend.screen(network, ours, view(members, network, Subnets(OWN_SUBNET), backend.TYPE or UDP), UPLINK)
    return backend.plan(network, ours, seen, UPLINK, 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(first=STEPS, second=STEPS)
def test_after_any_history_the_plan_names_living_peers_alone_and_diffs_converge(
    kind: str, first: list[tuple[int, str, int, str, str | None]], second: list[tuple[int, str, int, str, str | None]]
) -> None:
    before = planned(kind, history(first)[0])
    members, held = history([*first, *second])
    state = planned(kind, members)
    assert planned(kind, members) == state
    routed = {route.destination for route in state.routes if route.destination != config(kind).network}
    assert routed <= held - {OWN_SUBNET}
    assert {IPv4Network((entry.address, 24)) for entry in state.neighbours} <= routed
    assert {entry.mac for entry in state.fdb} == {entry.mac for entry in state.neighbours}
    assert len(state.fdb) == len({entry.mac for entry in state.fdb}) == len(state.neighbours)
    for wanted, there in ((state.routes, before.routes), (state.neighbours, before.neighbours), (state.fdb, before.fdb)):
        assert applied(diff(wanted, there), there) == wanted  # type: ignore[arg-type, type-var]
