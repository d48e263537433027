"""Which routing table takes a pod's replies back to ztunnel, and what has to change for it.

The table is 100 unless somebody else uses that in the pod: then it is the first free one of
`SPARE_TABLES`. The choice needs no memory: our policy rule in the pod names the table.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.linux.netlink import Netlink
from nodeagent.linux.policy_routing import lookup, preference
from nodeagent.netfilter.errors import RulesError, wrap_oserror
from nodeagent.netfilter.rule import Family
from nodeagent.redirect.routes import (
    Entry,
    LocalRoute,
    PolicyRule,
    destination,
    has_our_mark,
    loopback_has_ipv6,
    parse_route,
    parse_rule,
    read_marked_routes,
    read_routes,
    read_rules,
)
from nodeagent.redirect.rules import REPLY_TABLE, SPARE_TABLES, RedirectSpec

REPLY_TABLES = (REPLY_TABLE, *SPARE_TABLES)

_MOST_CONFLICTS = 3
"""How many conflicts are named in a message."""
_MOST_LIKE_OURS = 256
"""Policy rules with our preference and mark that are gone through; one is usual."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change in a pod's routing."""

    missing: tuple[Entry, ...] = ()
    """In the order in which they are added."""
    twice: tuple[Entry, ...] = ()
    """Copies of what is there and wanted once."""
    unwanted: tuple[Entry, ...] = ()
    """In the order in which they are removed: marked routes last, they prove whose the rest is."""
    conflicts: tuple[str, ...] = ()
    """Why replies find no way back, for each family in which no table is free."""


def plan(netlink: Netlink, spec: RedirectSpec) -> Plan:
    """Compare the routing in the netns of `netlink` with `spec`. Raises `RulesError`."""
    with wrap_oserror("look at the policy rules and routes"):
        plans = [
            path.plan()
            if path.family in spec.families
            and (path.family is Family.V4 or loopback_has_ipv6(netlink))
            else Plan(unwanted=tuple(path.removable(proven=True)))
            for path in _paths(netlink)
        ]
    return Plan(
        missing=tuple(entry for each in plans for entry in each.missing),
        twice=tuple(entry for each in plans for entry in each.twice),
        unwanted=tuple(entry for each in plans for entry in each.unwanted),
        conflicts=tuple(conflict for each in plans for conflict in each.conflicts),
    )


def removable(netlink: Netlink, *, proven: bool) -> tuple[Entry, ...]:
    """Everything that goes when the pod leaves the mesh, in the order in which it goes.

    Policy rules and local routes are removed as pairs only, and where there is proof of
    whose they are (L30): our own mark on the route, or, as `proven` says, rules of ours
    or of Istio's ambient agent in the pod. Raises `RulesError`.
    """
    with wrap_oserror("look at the policy rules and routes"):
        return tuple(entry for path in _paths(netlink) for entry in path.removable(proven=proven))


def add_entry(netlink: Netlink, entry: Entry) -> None:
    """Add `entry`, which is not there. Raises `RulesError`."""
    with wrap_oserror(f"add the {entry}"):
        entry.add(netlink)


def mark_entry(netlink: Netlink, entry: Entry) -> Entry:
    """Mark `entry` as ours before the rules go that are the only proof of it until then.

    If the agent is killed between the rules and the route, the next agent knows the route by
    its mark. Policy rules have no mark. Returns the entry as it is then. Raises `RulesError`.
    """
    if isinstance(entry, PolicyRule):
        return entry
    with wrap_oserror(f"mark the {entry}"):
        return entry.mark(netlink)


def remove_entry(netlink: Netlink, entry: Entry) -> None:
    """Remove `entry`, if it is still there. Raises `RulesError`."""
    with wrap_oserror(f"remove the {entry}"):
        entry.remove(netlink)


class _ReplyPath:
    """What one family's routing has that concerns the replies."""

    def __init__(self, netlink: Netlink, family: Family) -> None:
        """Read the routing. Raises ``OSError``, and `RulesError` for too many rules like ours."""
        self.family = family
        self._netlink = netlink
        self._rules: list[PolicyRule] = []
        self._lookups: dict[int, int] = {}
        """The tables that rules of others look up, each with the preference of one such rule."""
        rules = read_rules(netlink, family)
        alike = sum(map(has_our_mark, rules))
        if alike > _MOST_LIKE_OURS:
            raise RulesError(
                f"{alike} policy rules for {family} have the preference and the mark of ours:"
                " something in the pod adds them; remove them"
            )
        for found in rules:
            rule, table = parse_rule(found), lookup(found)
            if rule is not None and rule.table in REPLY_TABLES:
                self._rules.append(rule)
            elif table is not None and table not in self._lookups:
                self._lookups[table] = preference(found)
        self._marked = read_marked_routes(netlink, family)
        self._tables: dict[int, list[bytes]] = {}

    def plan(self) -> Plan:
        """Say what has to change for replies to find their way. Raises ``OSError``."""
        table, conflicts = self._choose()
        if table is None:
            return Plan(conflicts=(f"{self.family} replies have no table: {conflicts}",))
        missing: list[Entry] = []
        if not self._routes(table):
            missing.append(LocalRoute(self.family, table))
        here = [rule for rule in self._rules if rule.table == table]
        if not here:
            missing.append(PolicyRule(self.family, table))
        return Plan(
            missing=tuple(missing),
            twice=tuple(here[1:]),
            unwanted=tuple(self.removable(proven=True, but=table)),
        )

    def removable(self, *, proven: bool, but: int | None = None) -> Iterator[Entry]:
        """Yield what is ours, or Istio's, in all tables except `but`. Raises ``OSError``."""
        marked = {route.table for route in self._marked}
        rules = [
            rule for rule in self._rules if rule.table != but and (proven or rule.table in marked)
        ]
        yield from rules
        for table in sorted({rule.table for rule in rules} - self._lookups.keys()):
            for route in map(parse_route, self._routes(table)):
                if route is not None and not route.marked:
                    yield route
        yield from (route for route in self._marked if route.table != but)

    def _choose(self) -> tuple[int | None, str]:
        """Return the table that is in use or the first that is free; if there is none, why."""
        named = {rule.table for rule in self._rules}
        marked = {route.table for route in self._marked}
        conflicts = []
        for table in sorted(REPLY_TABLES, key=lambda each: (each not in named, each not in marked)):
            conflict = self._conflict(table, named=table in named)
            if conflict is None:
                return table, ""
            conflicts.append(f"table {table} {conflict}")
        more = len(conflicts) - _MOST_CONFLICTS
        return None, f"{'; '.join(conflicts[:_MOST_CONFLICTS])}; and {more} more"

    def _conflict(self, table: int, *, named: bool) -> str | None:
        """Say how somebody else uses `table`; None where nobody does."""
        if table in self._lookups:
            return f"is looked up by another policy rule, with preference {self._lookups[table]}"
        for found in self._routes(table):
            route = parse_route(found)
            # Without our mark it is Istio's, or an older agent's, only if a rule of ours names it.
            if route is None or not (route.marked or named):
                return f"has another route, to {destination(found)}"
        return None

    def _routes(self, table: int) -> list[bytes]:
        if table not in self._tables:
            self._tables[table] = read_routes(self._netlink, self.family, table)
        return self._tables[table]


def _paths(netlink: Netlink) -> Iterator[_ReplyPath]:
    for family in Family:
        try:
            yield _ReplyPath(netlink, family)
        except OSError as error:
            # A kernel without IPv6 at all.
            if error.errno not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                raise
