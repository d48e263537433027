"""Our entry goes in and out of others' configurations: every other byte stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nodeagent.cni.install.conflist import ConfError, ConfList, entry_of
from nodeagent.cni.install.directory import Changes, Directory, Files
from nodeagent.cni.install.loading import Loading
from nodeagent.cni.install.plan import (
    NoPrimaryError,
    NotYetError,
    Placement,
    plan,
    stamped,
    undone,
)

CORPUS = {path.name: path.read_bytes() for path in (Path(__file__).parent / "corpus").iterdir()}
BARE = {
    "type": "nodeagent",
    "socket": "/var/run/istio-cni/pluginevent.sock",
    "letThrough": {
        "namespaces": ["kube-system"],
        "agent": {"namespace": "istio-system", "podPrefix": "nodeagent-"},
    },
}
ENTRY = stamped(BARE, at="2026-01-02T03:04:05", binary="0123")
LATER = stamped(BARE, at="2026-02-02T03:04:05", binary="0123")
OTHER = stamped({**BARE, "socket": "/elsewhere.sock"}, at="2026-02-02T03:04:05", binary="4567")
ONE = Loading(most=1, tolerant=True, source="cri-o 1.31.0")
OWN = Placement(own_file="!0-own.conflist", loading=ONE)
"""Sorts before all of the corpus, Multus included."""
INSIDE = Placement()
HEAD = {"cniVersion": "1.0.0", "name": "n"}
ISTIO_ENTRY = '{"type": "istio-cni", "kubernetes": {"kubeconfig": "/etc/cni/net.d/kc"}}'

placements = pytest.mark.parametrize("placement", [OWN, INSIDE], ids=["own file", "inside"])
corpus = pytest.mark.parametrize("name", sorted(CORPUS))


def changed(files: Files, changes: Changes) -> dict[str, bytes]:
    """What `files` are after `changes`."""
    after = {**files, **changes}
    return {name: data for name, data in after.items() if data is not None}


def installed(files: Files, placement: Placement, entry: Any = ENTRY) -> dict[str, bytes]:
    """What an installer makes of `files`."""
    return changed(files, plan(Directory(files=files), placement, entry).changes)


def uninstalled(files: Files) -> dict[str, bytes]:
    """What an uninstallation makes of `files`."""
    return changed(files, undone(files))


def plugins(data: bytes) -> list[Any]:
    """The plugins in a list."""
    found: list[Any] = json.loads(data)["plugins"]
    return found


@corpus
@placements
def test_in_and_out_to_the_byte(name: str, placement: Placement) -> None:
    """A real-world configuration that was installed into and left again is what it was."""
    before = {name: CORPUS[name]}
    there = installed(before, placement)
    target = placement.own_file or f"{name.rpartition('.')[0]}.conflist"
    original = json.loads(CORPUS[name])
    assert plugins(there[target])[:-1] == original.get("plugins", [original])
    assert plugins(there[target])[-1] | {"installed": None} == {**BARE, "installed": None}
    assert json.loads(there[target])["cniVersion"] == original["cniVersion"]
    assert uninstalled(there) == before


@corpus
@placements
def test_again_changes_nothing(name: str, placement: Placement) -> None:
    """What stands is not written again, not by a later agent with the same settings either."""
    there = installed({name: CORPUS[name]}, placement)
    for entry in (ENTRY, LATER):
        assert installed(there, placement, entry) == there


@corpus
@placements
def test_whole_again_after_the_owner(name: str, placement: Placement) -> None:
    """L3: after its owner wrote the file anew it is as after the first installation."""
    there = installed({name: CORPUS[name]}, placement)
    assert installed({**there, name: CORPUS[name]}, placement) == there


@corpus
@placements
def test_of_several_agents_the_last_one_counts(name: str, placement: Placement) -> None:
    """An upgrade replaces the entry in its place, and the first one's comes out as easily."""
    before = {name: CORPUS[name]}
    there = installed(installed(before, placement), placement, OTHER)
    assert there == installed(before, placement, OTHER)
    assert uninstalled(there) == before


@corpus
def test_other_placement(name: str) -> None:
    """A changed setting moves the entry, and leaves nothing where it was before."""
    before = {name: CORPUS[name]}
    alone = Placement(chained=False)
    for first in (OWN, INSIDE, alone):
        for second in (OWN, INSIDE, alone):
            assert installed(installed(before, first), second) == installed(before, second)


@placements
def test_whoever_formats_it_anew_is_left_in_peace(placement: Placement) -> None:
    """A list that somebody has re-serialised with our entry in it says the same: no fight."""
    there = installed({"10-calico.conflist": CORPUS["10-calico.conflist"]}, placement)
    target = placement.own_file or "10-calico.conflist"
    value = json.loads(there[target])
    again = {**there, target: json.dumps(value, sort_keys=True, indent=7).encode()}
    assert installed(again, placement) == again


def test_stands_where_people_look_for_it() -> None:
    """Where each plugin begins a line, so does our entry."""
    there = installed({"10-calico.conflist": CORPUS["10-calico.conflist"]}, INSIDE)
    assert b'},\n    {"type": "nodeagent", ' in there["10-calico.conflist"]


def test_bytes_that_json_libraries_lose() -> None:
    """Doubled keys, long numbers, escapes and bytes that are no UTF-8 come through."""
    text = (
        b'{"cniVersion":"1.0.0","x":1,"x":2,"name":"n","n":123456789012345678901234567890,"f":1.10e+01,'
        b'"s":"\\u00e9\\/\xff\xc3","plugins":[],"plugins" : [ {"type":"a","b":[],"b":{}} ] }'
    )
    there = installed({"a.conflist": text}, INSIDE)
    assert there["a.conflist"].startswith(text[:-4] + b', {"type": "nodeagent"')
    assert uninstalled(there) == {"a.conflist": text}


def test_entry_in_the_middle_is_replaced_where_it_stands() -> None:
    """An entry that somebody has put others behind keeps its place, and comes out of it."""
    old, new = json.dumps(OTHER), json.dumps(ENTRY)
    shape = (
        '{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"},\n  %s,\n  {"type": "b"}]}'
    )
    there = installed({"a.conflist": (shape % old).encode()}, INSIDE)
    assert there == {"a.conflist": (shape % new).encode()}
    out = b'{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"},\n  {"type": "b"}]}'
    assert uninstalled(there) == {"a.conflist": out}


@pytest.mark.parametrize("places", [(0, 2), (1, 2, 3), (0, 1, 4)])
def test_several_entries_become_one(places: tuple[int, ...]) -> None:
    """Of several entries of ours the first stays, brought up to date; uninstalled, none does."""
    items = [{"type": kind} for kind in "ab"]
    for place in places:
        items.insert(place, dict(OTHER))
    lists = {"a.conflist": json.dumps({**HEAD, "plugins": items}).encode()}
    types = [item["type"] for item in plugins(installed(lists, INSIDE)["a.conflist"])]
    assert types.count("nodeagent") == 1
    assert types.index("nodeagent") == places[0]
    out = [item["type"] for item in plugins(uninstalled(lists)["a.conflist"])]
    assert out == ["a", "b"]


@placements
def test_istio_is_taken_over(placement: Placement) -> None:
    """Istio's entry is replaced where it stands, and the plan says so."""
    name = "10-calico.conflist"
    text = (
        CORPUS[name].decode().replace('{\n      "type": "bandwidth"', ISTIO_ENTRY + ',{"type":"z"')
    )
    found = Directory(files={name: text.encode()})
    made = plan(found, placement, ENTRY)
    assert made.taken_over
    there = changed(found.files, made.changes)
    assert [p["type"] for p in plugins(there[made.target])] == [
        "calico",
        "portmap",
        "nodeagent",
        "z",
    ]


def test_istios_own_file_is_taken_over() -> None:
    """A file that Istio's agent has made under our own file's name is written over."""
    placement = Placement(own_file="02-istio-cni.conflist", loading=ONE)
    files = {
        "02-istio-cni.conflist": b'{"name":"old","plugins":[{"type":"x"},%s]}'
        % ISTIO_ENTRY.encode(),
        "10-flannel.conflist": CORPUS["10-flannel.conflist"],
    }
    made = plan(Directory(files=files), placement, ENTRY)
    assert (made.target, made.primary) == ("02-istio-cni.conflist", "10-flannel.conflist")
    assert made.taken_over
    there = changed(files, made.changes)
    assert [p["type"] for p in plugins(there[made.target])] == ["flannel", "portmap", "nodeagent"]


def test_somebody_elses_file_is_not_written_over() -> None:
    """Where our own file should be, somebody else's stays as it is, and the error says so."""
    files = {"!0-own.conflist": CORPUS["10-weave.conflist"], **CORPUS}
    with pytest.raises(NotYetError, match=r"!0-own\.conflist is somebody else's"):
        plan(Directory(files=files), OWN, ENTRY)


def test_entry_removed_from_our_own_file_by_hand() -> None:
    """L3: our own file without our entry is recognized as the copy that it was."""
    before = {"10-flannel.conflist": CORPUS["10-flannel.conflist"]}
    there = installed(before, OWN)
    by_hand = {**there, "!0-own.conflist": CORPUS["10-flannel.conflist"]}
    assert installed(by_hand, OWN) == there


def test_primary_is_the_first_valid_one() -> None:
    """Invalid files are passed over; what sorts first of the others is the primary."""
    files = {
        "00-broken.conflist": b"{",
        "01-empty.conf": b"",
        "05-list.conf": b"[1]",
        "06-none.conflist": b'{"name":"n","plugins":[]}',
        "10-weave.conflist": CORPUS["10-weave.conflist"],
        "20-flannel.conflist": CORPUS["10-flannel.conflist"],
    }
    found = Directory(files=files)
    assert plan(found, INSIDE, ENTRY).primary == "10-weave.conflist"
    assert sorted(found.invalid()) == sorted(files)[:4]
    assert plan(found, Placement(conf_name="20-flannel.conflist"), ENTRY).changes.keys() == {
        "20-flannel.conflist"
    }


@pytest.mark.parametrize("conf_name", ["99-bridge-crlf.conf", "99-bridge-crlf.conflist"])
def test_named_primary_is_found_after_its_conversion(conf_name: str) -> None:
    """CNI_CONF_NAME holds before and after its .conf became a .conflist."""
    before = {"99-bridge-crlf.conf": CORPUS["99-bridge-crlf.conf"]}
    placement = Placement(conf_name=conf_name)
    there = installed(before, placement)
    assert set(there) == {"99-bridge-crlf.conflist"}
    assert json.loads(there["99-bridge-crlf.conflist"])["name"] == "crio"
    assert installed(there, placement) == there


@pytest.mark.parametrize("conf_name", ["10-x.conf", "10-x.conflist"])
def test_named_primary_has_a_twin(conf_name: str) -> None:
    """Of a .conf and a .conflist with the same stem the one that is named counts."""
    files = {"10-x.conf": CORPUS["00-multus.conf"], "10-x.conflist": CORPUS["10-weave.conflist"]}
    placement = Placement(conf_name=conf_name, own_file="!0-own.conflist", loading=ONE)
    assert plan(Directory(files=files), placement, ENTRY).primary == conf_name


def test_copy_of_a_single_plugin_keeps_its_network() -> None:
    """Our copy of a .conf has the network's name: its addresses are accounted under that."""
    there = installed({"99-bridge-crlf.conf": CORPUS["99-bridge-crlf.conf"]}, OWN)
    assert json.loads(there["!0-own.conflist"])["name"] == "crio"


def test_conversion_does_not_write_over_a_list() -> None:
    """A .conf whose .conflist is there already is not converted, and the error names both."""
    files = {"10-x.conf": CORPUS["00-multus.conf"], "10-x.conflist": CORPUS["10-weave.conflist"]}
    with pytest.raises(NotYetError, match=r"10-x\.conf cannot become 10-x\.conflist"):
        plan(Directory(files=files), INSIDE, ENTRY)


def test_converted_list_that_grew() -> None:
    """Where another plugin has joined the converted list, only our entry is taken out of it."""
    there = installed({"10-x.conf": b'{"cniVersion":"0.4.0","type":"a"}\n'}, INSIDE)
    grown = {"10-x.conflist": there["10-x.conflist"].replace(b"\n]", b', {"type":"b"}]')}
    out = uninstalled(grown)
    assert [p["type"] for p in plugins(out["10-x.conflist"])] == ["a", "b"]


def test_own_file_that_would_not_be_first() -> None:
    """A primary that sorts before our own file is an error with the remedy: ours would be idle."""
    with pytest.raises(
        NotYetError, match=r"00-multus\.conf comes before .*CHAINED_CNI_PLUGIN=false"
    ):
        plan(
            Directory(files=CORPUS), Placement(own_file="02-istio-cni.conflist", loading=ONE), ENTRY
        )


def test_unreadable_file_could_be_the_primary() -> None:
    """A file that only the runtime can read is not passed over: ours must not be of another."""
    late = {"20-flannel.conflist": CORPUS["10-flannel.conflist"]}
    found = Directory(files=late, unreadable={"10-x.conflist": "out of reach"})
    with pytest.raises(NotYetError, match=r"10-x\.conflist: out of reach"):
        plan(found, INSIDE, ENTRY)
    behind = Directory(files=late, unreadable={"30-x.conflist": "out of reach"})
    assert plan(behind, INSIDE, ENTRY).primary == "20-flannel.conflist"


def test_stand_alone() -> None:
    """Not chained, the entry is a configuration of its own, and nobody else's is touched."""
    there = installed(CORPUS, Placement(chained=False))
    assert {n: there[n] for n in CORPUS} == CORPUS
    alone = json.loads(there["YYY-istio-cni.conf"])
    assert alone["name"] == "nodeagent"
    assert alone["type"] == "nodeagent"
    assert uninstalled(there) == CORPUS
    with pytest.raises(NotYetError, match="another plugin's"):
        plan(Directory(files=CORPUS), Placement(chained=False, conf_name="00-multus.conf"), ENTRY)


def test_somebody_elses_single_plugin_stays() -> None:
    """A .conf that only mentions our entry is not ours, and stays."""
    files = {"a.conf": json.dumps({"type": "multus", "plugins": [BARE]}).encode()}
    assert uninstalled(files) == files


@placements
def test_too_large_with_our_entry(placement: Placement) -> None:
    """A list that our entry would make too large for anybody is an error, and stays."""
    data = (
        b'{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]'
        + b" " * ((1 << 20) - 70)
        + b"}"
    )
    with pytest.raises(NotYetError, match=r"a\.conflist cannot have our entry.*larger than"):
        plan(Directory(files={"a.conflist": data}), placement, ENTRY)


@placements
@pytest.mark.parametrize("version", ["0.2.0", "2.0.0", ""])
def test_version_that_our_plugin_does_not_speak(placement: Placement, version: str) -> None:
    """A chain whose version would make our plugin fail every pod is left alone, and said so."""
    files = {"a.conf": json.dumps({"type": "a", "cniVersion": version}).encode()}
    with pytest.raises(NotYetError, match=rf'a\.conf has cniVersion "{version}"'):
        plan(Directory(files=files), placement, ENTRY)


def test_own_file_is_no_primary() -> None:
    """A primary that is named like our own file is an error."""
    with pytest.raises(NotYetError, match="comes before"):
        plan(
            Directory(files=CORPUS),
            Placement(conf_name="10-aws.conflist", own_file="10-aws.conflist", loading=ONE),
            ENTRY,
        )


def test_no_primary_yet() -> None:
    """A directory with only the mesh's own leftovers has no primary."""
    files = {"YYY-istio-cni.conf": ISTIO_ENTRY.encode(), "x.conflist": b"{}"}
    with pytest.raises(NoPrimaryError):
        plan(Directory(files=files), INSIDE, ENTRY)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xef\xbb\xbf{}", "not a JSON object"),
        (b'{"name": NaN}', "not a JSON object"),
        (b'{"name":"n","plugins":[{"type":"a"},]}', "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b'{"name":1,"plugins":[{"type":"a"}]}', '"name"'),
        (b'{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}', '"cniVersion"'),
        (b'{"name":"n","plugins":{"type":"a"}}', '"plugins"'),
        (b'{"name":"n","plugins":[5]}', '"type"'),
        (b'{"name":"n","plugins":[{"type":5}]}', '"type"'),
        (b'{"name":"n","plugins":' + b"[" * 300 + b"]" * 300 + b"}", "nested more than"),
        (b'{"name":"n","plugins":' + b"[" * 99999, "more than"),
        (b'{"name":"n"' + b" " * (1 << 20) + b"}", "larger than"),
    ],
)
def test_what_no_runtime_can_use(data: bytes, reason: str) -> None:
    """Each kind of broken file has its reason."""
    with pytest.raises(ConfError, match=reason):
        ConfList.parse(data)


@pytest.mark.parametrize("notes", ["x", [], {"copyOf": 5}, {"convertedFrom": {}}, {"at": None}])
def test_notes_that_somebody_else_wrote(notes: Any) -> None:
    """Nothing in an entry of our type is taken on trust."""
    entry = {"type": "nodeagent", "installed": notes}
    lists = {"a.conflist": json.dumps({**HEAD, "plugins": [{"type": "a"}, entry]}).encode()}
    out = json.dumps({**HEAD, "plugins": [{"type": "a"}]}).encode()
    assert uninstalled(lists) == {"a.conflist": out}
    assert entry_of(installed(lists, INSIDE)["a.conflist"]) == ENTRY


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
_plugin = st.builds(
    lambda rest, kind: {**rest, "cniVersion": "0.3.1", "type": kind},
    st.dictionaries(st.text(max_size=4), _json, max_size=3),
    st.text(min_size=1, max_size=5),
)
_list = st.builds(
    lambda rest, name, items: {**rest, **HEAD, "name": name, "plugins": items},
    st.dictionaries(st.text(max_size=4), _json, max_size=3),
    st.text(min_size=1, max_size=5),
    st.lists(_plugin, min_size=1, max_size=4),
)
_indent = st.none() | st.integers(0, 3) | st.sampled_from(["\t", "\r\n "])
_space = st.text(" \t\r\n", max_size=3)


def _encodable(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        assume(False)
        raise


@settings(max_examples=60, deadline=None)
@given(_list, _indent, _space, _space, st.booleans())
def test_any_list(value: Any, indent: Any, before: str, after: str, plain: bool) -> None:
    """Any list, however it is formatted: in and out to the byte, in twice as in once."""
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    data = _encodable(before + text + after)
    for placement in (INSIDE, OWN):
        there = installed({"a.conflist": data}, placement)
        target = placement.own_file or "a.conflist"
        assert plugins(there[target])[:-1] == value["plugins"]
        assert installed(there, placement) == there
        assert uninstalled(there) == {"a.conflist": data}


@settings(max_examples=60, deadline=None)
@given(_plugin, _indent, _space, _space)
def test_any_single_plugin(value: Any, indent: Any, before: str, after: str) -> None:
    """Any single plugin's configuration becomes a list, and comes back to the byte."""
    data = _encodable(before + json.dumps(value, indent=indent) + after)
    for placement in (INSIDE, OWN):
        there = installed({"a.conf": data}, placement)
        assert installed(there, placement) == there
        assert uninstalled(there) == {"a.conf": data}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64) | st.text(max_size=64).map(lambda t: t.encode(errors="replace")))
def test_any_bytes(data: bytes) -> None:
    """No content of a file breaks more than itself."""
    files = {"a.conf": data, "b.conflist": data, "c.conflist": CORPUS["10-weave.conflist"]}
    assert uninstalled(installed(files, INSIDE)) == files
