"""What the files of the CNI configuration directory should be, given what they are.

Pure: `plan` takes what was found in the directory and returns what has to be written and
removed, `undone` what an uninstallation has to. Each starts from the files without any entry
of ours, so what an earlier agent put elsewhere goes in the same step. Our entry carries notes
of the installer: when it was made, of which file ours is a copy, and from which single
plugin's configuration a list was converted.
"""

from dataclasses import dataclass, replace
from typing import Any

from nodeagent.cni.install.conflist import (
    INSTALLED,
    ISTIO,
    OURS,
    ConfError,
    ConfList,
    Entry,
    entry_of,
    same,
    stand_alone,
)
from nodeagent.cni.install.directory import (
    Changes,
    Directory,
    Files,
    as_list,
    foreign_type,
    list_name,
    single_names,
    types_of,
)
from nodeagent.cni.install.loading import UNKNOWN, Loading
from nodeagent.cni.versions import VERSIONS

STAND_ALONE_NAME = "YYY-istio-cni.conf"
"""Sorts behind every primary configuration: no runtime takes it for one."""
_AT, _COPY_OF, _CONVERTED_FROM = "at", "copyOf", "convertedFrom"


class NotYetError(Exception):
    """As things are, nothing can be installed; the text says what has to change."""


class NoPrimaryError(NotYetError):
    """No CNI plugin has a configuration here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where our entry goes."""

    conf_name: str = ""
    """The primary configuration, or our own where it stands alone; empty: found, the default."""
    chained: bool = True
    """False: our entry is a configuration of its own that nobody but Multus uses."""
    own_file: str | None = None
    """Name of a file for a copy of the primary's plugins and our entry, made where the copy is
    known to leave pods their network; None: our entry goes into the primary."""
    loading: Loading = UNKNOWN
    """What the container runtime makes of the directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What has to be written and what goes, to have our entry where it belongs."""

    target: str
    """The file with our entry."""
    changes: Changes
    primary: str = ""
    """The file that the primary CNI plugin owns."""
    taken_over: bool = False
    """The changes replace an entry of Istio's."""
    no_own_file: str = ""
    """Why our entry goes into the primary, though a file of our own was asked for."""


def plan(found: Directory, placement: Placement, entry: Entry) -> Plan:
    """Decide what to change. Raises ``NotYetError``.

    What an earlier agent put elsewhere is taken out. `entry` is our entry with the
    time of its making: an installed one that differs in nothing else is right.
    """
    clean = {**found.files, **undone(found.files)}
    files = {name: data for name, data in clean.items() if data is not None}
    if not placement.chained:
        return _stand_alone(found, files, placement.conf_name or STAND_ALONE_NAME, entry)
    primary = _primary(found, files, placement)
    reason = ""
    if placement.own_file is not None:
        if not (reason := _no_own_file(found, files, primary, placement)):
            return _own_file(found, files, primary, placement.own_file, entry)
        # A file of Istio's agent under our own file's name is a primary like others then.
        primary = _primary(found, files, replace(placement, own_file=None))
    return replace(_in_primary(found, files, primary, entry), no_own_file=reason)


def undone(files: Files) -> Changes:
    """What has to be written and removed for each file to be as it was without us."""
    changes: dict[str, bytes | None] = {}
    for name, data in files.items():
        entry = entry_of(data)
        if entry is None:
            continue
        if not name.endswith(".conflist"):
            if types_of(name, data) == (OURS,):
                changes[name] = None
            continue
        notes = _notes(entry)
        try:
            confs = ConfList.parse(data)
        except ConfError:
            continue
        converted = notes.get(_CONVERTED_FROM)
        single = confs.single() if converted and list_name(converted) == name else None
        if notes.get(_COPY_OF) is not None:
            changes[name] = None
        elif converted and single is not None:
            changes[name] = None
            if converted not in files:
                changes[converted] = single
        else:
            changes[name] = confs.without_entry()
    return changes


def alike(one: Entry, other: Entry) -> bool:
    """Whether two entries differ at most in when and how they were installed."""
    return _essence(one) == _essence(other)


def newest(files: Files, entry: Entry) -> str:
    """When an entry was made that differs from `entry` in more than that; or ''."""
    others = (other for data in files.values() if (other := entry_of(data)) is not None)
    times = (_notes(other).get(_AT, "") for other in others if not alike(other, entry))
    return max(times, default="")


def primary_of_copy(found: Directory, own_file: str) -> str:
    """Of which file our own file is a copy; '' if it is not there."""
    data = found.files.get(own_file)
    entry = entry_of(data) if data is not None else None
    return _notes(entry).get(_COPY_OF, "") if entry is not None else ""


def stamped(entry: Entry, *, at: str, binary: str) -> Entry:
    """`entry` with when it was made, and the digest of the binary that goes with it."""
    return {**entry, INSTALLED: {_AT: at, "binary": binary}}


def _stand_alone(found: Directory, files: Files, name: str, entry: Entry) -> Plan:
    if name in files and foreign_type(name, files[name]):
        raise NotYetError(
            f"{name} is another plugin's: CNI_CONF_NAME must name a file of our own"
            " where CHAINED_CNI_PLUGIN is false"
        )
    wanted = stand_alone(_dated(entry, found.files.get(name)))
    return _planned(found, files, {name: wanted}, target=name)


def _no_own_file(found: Directory, files: Files, primary: str, placement: Placement) -> str:
    """Why a copy of the primary that sorts first could change pods' networks; '' if it cannot."""
    name = placement.own_file or ""
    loading = placement.loading
    copied = primary_of_copy(found, name)
    if loading.most is None:
        # A copy that is there was made by an agent that knew.
        return "" if copied else f"it is not known which files are loaded: {loading.source}"
    if loading.most != 1:
        return (
            f"{loading.source} loads {loading.most or 'all'} configurations (max_conf_num):"
            " a copy of one would be a second interface of each pod"
        )
    if copied == primary or primary <= name:
        return ""  # that a copy would come second is an error, which is said elsewhere
    counted = {*files, *found.unreadable, *found.broken} - {name}
    if loading.tolerant:
        counted -= found.invalid().keys()
    first = min(counted)
    return "" if first == primary else f"{loading.source} comes to {first} before {primary}"


def _own_file(found: Directory, files: Files, primary: str, name: str, entry: Entry) -> Plan:
    if primary <= name:
        raise NotYetError(
            f"{primary} comes before {name}, so that runtimes would not read ours: "
            + _remedy_for_order(foreign_type(primary, files[primary]))
        )
    _require_spoken(primary, files[primary])
    source = as_list(primary, files[primary])
    current = files.get(name)
    if current is not None and not _adoptable(current, source):
        raise NotYetError(
            f"{name} is somebody else's configuration:"
            " set ISTIO_OWNED_CNI_CONFIG_FILENAME to another name"
        )
    noted = _noted(_dated(entry, found.files.get(name)), _COPY_OF, primary)
    wanted = _with_entry(primary, source, noted)
    return _planned(found, files, {name: wanted}, target=name, primary=primary)


def _in_primary(found: Directory, files: Files, primary: str, entry: Entry) -> Plan:
    _require_spoken(primary, files[primary])
    if primary.endswith(".conflist"):
        data = found.files[primary]
        wanted = _with_entry(primary, ConfList.parse(data), _dated(entry, data))
        return _planned(found, files, {primary: wanted}, target=primary, primary=primary)
    target = list_name(primary)
    if target in files:
        raise NotYetError(
            f"{primary} cannot become {target}, which is there already:"
            " take one of the two away, or name one in CNI_CONF_NAME"
        )
    current = found.files.get(target)
    noted = _noted(_dated(entry, current), _CONVERTED_FROM, primary)
    if current is not None and primary not in found.files:
        base = ConfList.parse(current)
    else:
        # The list keeps the network's name: addresses are accounted under that.
        base = ConfList.around(files[primary])
    changes = {target: _with_entry(primary, base, noted), primary: None}
    return _planned(found, files, changes, target=target, primary=primary)


def _with_entry(name: str, base: ConfList, entry: Entry) -> bytes:
    try:
        return base.with_entry(entry).data
    except ConfError as error:
        raise NotYetError(f"{name} cannot have our entry: it would be {error}") from error


def _planned(
    found: Directory, clean: Files, changes: Changes, *, target: str, primary: str = ""
) -> Plan:
    """Make the plan by which `found` becomes `clean` with `changes`."""
    goal: dict[str, bytes | None] = {**dict.fromkeys(found.files), **clean, **changes}
    before, after = found.files.get(target), goal[target]
    if before is not None and after is not None and _says(before, after):
        goal[target] = before
    return Plan(
        target=target,
        primary=primary,
        changes={n: data for n, data in goal.items() if found.files.get(n) != data},
        taken_over=any(
            ISTIO in types_of(n, found.files[n]) for n in (target, primary) if n in found.files
        ),
    )


def _primary(found: Directory, files: Files, placement: Placement) -> str:
    conf_name = placement.conf_name
    # The named file may have been converted to a list, or be about to be.
    named = (conf_name, list_name(conf_name), *single_names(conf_name))

    def eligible(name: str) -> bool:
        return name in named if conf_name else name != placement.own_file

    candidates = [
        name for name, data in sorted(files.items()) if eligible(name) and foreign_type(name, data)
    ]
    if conf_name in candidates:
        return conf_name
    beyond_us = found.beyond_us()
    first = min(filter(eligible, beyond_us), default=None)
    # A runtime may be able to use what we cannot, and ours must not be made of another.
    if first is not None and (not candidates or first < candidates[0]):
        raise NotYetError(f"{first}: {beyond_us[first]}")
    if not candidates:
        raise NoPrimaryError(
            f"there is no valid {conf_name} (CNI_CONF_NAME) yet"
            if conf_name
            else "no CNI plugin has written its configuration yet"
        )
    return candidates[0]


def _require_spoken(name: str, data: bytes) -> None:
    """Our plugin would fail every pod of a chain whose version it does not speak."""
    version = as_list(name, data).version
    if version not in VERSIONS:
        raise NotYetError(
            f'{name} has cniVersion "{version}", and our plugin speaks {", ".join(VERSIONS)}:'
            " the primary CNI plugin's configuration has to name one of them"
        )


def _adoptable(data: bytes, source: ConfList) -> bool:
    """Whether a file under our own file's name, with content `data`, may be written over.

    A file may that Istio's agent has made, one that was our copy of `source` before our entry
    was taken out of it, and one that no runtime can use.
    """
    try:
        current = ConfList.parse(data)
    except ConfError:
        return True
    return ISTIO in current.types or same(data, source.data)


def _dated(entry: Entry, current: bytes | None) -> Entry:
    """`entry`, with the time of the installed one if the time is all that differs."""
    other = entry_of(current) if current is not None else None
    if other is None or not alike(other, entry):
        return entry
    return _noted(entry, _AT, _notes(other).get(_AT, ""))


def _essence(entry: Entry) -> tuple[dict[str, Any], str]:
    ignored = (INSTALLED, "name", "cniVersion")  # the two of a stand-alone configuration
    rest = {key: value for key, value in entry.items() if key not in ignored}
    return rest, _notes(entry).get("binary", "")


def _notes(entry: Entry) -> dict[str, str]:
    """What an installer has noted in `entry`: anybody may have written it."""
    notes = entry.get(INSTALLED)
    if not isinstance(notes, dict):
        return {}
    return {key: value for key, value in notes.items() if isinstance(value, str)}


def _noted(entry: Entry, key: str, value: str) -> Entry:
    return {**entry, INSTALLED: {**_notes(entry), key: value}}


def _says(before: bytes, after: bytes) -> bool:
    try:
        return same(before, after)
    except ConfError:
        return False


def _remedy_for_order(kind: str) -> str:
    if kind.startswith("multus"):
        return (
            "with Multus, set CNI_CONF_NAME to the configuration that it delegates to,"
            " or CHAINED_CNI_PLUGIN=false"
        )
    return "give ISTIO_OWNED_CNI_CONFIG_FILENAME a name that sorts before it"
