"""A connection to the kernel for the host's nftables table for health probes.

The table is asked for single things, by name: neither others' rules nor the number of
addresses in the sets make that slower.
"""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address

from nodeagent.linux.netlink import Netlink, attribute, attributes
from nodeagent.mesh.pod import IPAddress
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.generation import generation
from nodeagent.netfilter.libnftables import Library
from nodeagent.netfilter.nfnetlink import (
    HEADER_SIZE,
    NETLINK_NETFILTER,
    NFPROTO_INET,
    NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM,
    NLA_F_NESTED,
    header,
    name_attribute,
)
from nodeagent.netfilter.nft_state import TableState, read_table
from nodeagent.netfilter.scratch import in_scratch_netns
from nodeagent.probes.nft_rules import CHAIN, ISTIO_CHAIN, TABLE, render_table
from nodeagent.probes.rules import SETS, ProbeRules, owner_in

# linux/netfilter/nf_tables.h: NFTA_…
_SET_TABLE, _SET_NAME, _ELEMENTS = 1, 2, 3
_LIST_ELEMENT, _ELEMENT_KEY, _ELEMENT_USERDATA = 1, 1, 6
_DATA_VALUE = 1
_COMMENT = 0
"""libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT: the kind of note that is nft's comment."""
_ADDRESS_SIZES = {4, 16}


@lru_cache(maxsize=4)
def reference(rules: ProbeRules) -> TableState:
    """What `ProbeTable.state` gives after `rules` were written. Raises `RulesError`.

    The rules are written and read in a network namespace made for it, so that two readings
    of the kernel's messages are compared.
    """

    def write_and_read() -> TableState:
        table = ProbeTable()
        try:
            table.apply(render_table(rules))
            state = table.state()
        finally:
            table.close()
        assert state is not None  # noqa: S101 - `apply` has made it, and nobody else is here
        return state

    return in_scratch_netns(write_and_read)


class ProbeTable:
    """A connection to the table, in the network namespace of the thread that makes it.

    Any thread may use it then, one at a time, until `close`. It is worth keeping: the
    kernel makes whoever closes such a socket wait until it has freed everything that was
    deleted, 8 to 24 ms, where the deletion takes 0.06. Every method raises
    `RulesError`; close the connection then.
    """

    def __init__(self) -> None:
        with wrap_oserror("open a netfilter socket"):
            self._netlink = Netlink(NETLINK_NETFILTER)
        try:
            self._library = Library()
        except RulesError:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        self._netlink.close()
        self._library.close()

    def apply(self, text: str) -> None:
        """Hand `text` to the kernel as one transaction; nothing has changed if it raises."""
        self._library.apply(text)

    def generation(self) -> int:
        """The kernel's count of changes to any nftables rules or sets in the netns."""
        return generation(self._netlink)

    def state(self) -> TableState | None:
        """Read everything but the addresses; None where there is no such table."""
        with wrap_oserror("read the host's rules for probes"):
            return read_table(self._netlink, TABLE, (CHAIN, ISTIO_CHAIN), SETS.values())

    def owner(self, address: IPAddress) -> str | None:
        """The UID that `address` is in its set for, see `Owners`; None: it is in no set.

        Takes 0.02 ms, however many addresses there are.
        """
        key = attribute(_ELEMENT_KEY | NLA_F_NESTED, attribute(_DATA_VALUE, address.packed))
        elements = attribute(_ELEMENTS | NLA_F_NESTED, attribute(_LIST_ELEMENT | NLA_F_NESTED, key))
        with wrap_oserror("look an address up in the host's set for probes"):
            found = self._netlink.get(NFT_MSG_GETSETELEM, _in_set(address.version) + elements)
        return None if found is None else dict(_elements(found)).get(address)

    def owners(self) -> dict[IPAddress, str]:
        """Read all addresses; 2 to 4 ms for 1,000."""
        found: dict[IPAddress, str] = {}
        with wrap_oserror("read the host's sets for probes"):
            for version in SETS:
                if self._netlink.get(NFT_MSG_GETSET, _in_set(version)) is not None:
                    for body in self._netlink.dump(NFT_MSG_GETSETELEM, _in_set(version)):
                        found.update(_elements(body))
        return found


def _in_set(version: int) -> bytes:
    names = name_attribute(_SET_TABLE, TABLE) + name_attribute(_SET_NAME, SETS[version])
    return header(NFPROTO_INET) + names


def _elements(body: bytes) -> Iterator[tuple[IPAddress, str]]:
    answer = dict(attributes(body[HEADER_SIZE:]))
    for _, data in attributes(answer.get(_ELEMENTS, b"")):
        element = dict(attributes(data))
        key = dict(attributes(element.get(_ELEMENT_KEY, b""))).get(_DATA_VALUE, b"")
        # A set that is not ours may have our set's name, and ports in it, or a catch-all.
        if len(key) in _ADDRESS_SIZES:
            yield ip_address(key), owner_in(_comment(element.get(_ELEMENT_USERDATA, b"")))


def _comment(userdata: bytes) -> str:
    """The comment among an element's notes; each begins with two bytes for kind and length."""
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == _COMMENT:
            return userdata[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        userdata = userdata[2 + length :]
    return ""
