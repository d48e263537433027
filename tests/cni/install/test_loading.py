"""What container runtimes make of the directory, and that pods keep their networks."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cni.install.conflist import CONVERTED_NAME, ConfError, ConfList
from nodeagent.cni.install.directory import Directory
from nodeagent.cni.install.loading import UNKNOWN, Loading, loading_of
from nodeagent.cni.install.plan import NotYetError, Placement, plan, stamped, undone

OWN = "02-own.conflist"
ENTRY = stamped({"type": "nodeagent"}, at="2026-01-02T03:04:05", binary="0123")
CRIO = Loading(most=1, tolerant=True, source="cri-o 1.31.0")
CONTAINERD = Loading(most=1, source="containerd 1.7.20")
ALL = Loading(most=0, source="containerd 1.7.20")
TWO = Loading(most=2, source="containerd 1.7.20")

Networks = list[tuple[str, list[Any]]] | None


def single(kind: str) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": f"net-{kind}", "type": kind}).encode()


def several(kind: str) -> bytes:
    plugins = [{"type": kind}, {"type": "portmap"}]
    return json.dumps({"cniVersion": "1.0.0", "name": f"net-{kind}", "plugins": plugins}).encode()


def after(
    files: Mapping[str, bytes], loading: Loading, conf_name: str = ""
) -> tuple[str, dict[str, bytes], str]:
    """Where our entry is afterwards, all files, and why not in a file of its own."""
    placement = Placement(conf_name=conf_name, own_file=OWN, loading=loading)
    made = plan(Directory(files=files), placement, ENTRY)
    there = {**files, **made.changes}
    return (
        made.target,
        {name: data for name, data in there.items() if data is not None},
        made.no_own_file,
    )


def networks(files: Mapping[str, bytes], loading: Loading) -> Networks:
    """What the runtime makes of the directory for each pod, our entry left out; None: nothing."""
    found: list[tuple[str, list[Any]]] = []
    for name in sorted(files):
        try:
            value = json.loads(files[name])
            plugins = value["plugins"] if name.endswith(".conflist") else [value]
            others = [plugin for plugin in plugins if plugin["type"] != "nodeagent"]
        except (ValueError, KeyError, TypeError):
            if loading.tolerant:
                continue
            return None
        found.append((value.get("name", CONVERTED_NAME), others))
        if len(found) == loading.most:
            break
    return found


@pytest.mark.parametrize("loading", [ALL, TWO])
def test_copy_would_be_a_second_interface(loading: Loading) -> None:
    """Where more than one file is loaded, the entry goes into the primary, and is said why."""
    target, files, reason = after({"10-x.conflist": several("x")}, loading)
    assert (target, set(files)) == ("10-x.conflist", {"10-x.conflist"})
    assert "max_conf_num" in reason
    assert after({"00-x.conflist": several("x")}, loading)[0] == "00-x.conflist"
    earlier = after({"10-x.conflist": several("x")}, CONTAINERD)
    assert earlier[0] == OWN
    assert after(earlier[1], loading)[1].keys() == {"10-x.conflist"}, "it leaves its own file"


def test_unknown_runtime() -> None:
    """Nothing is risked where the runtime cannot be asked; a copy that stands may stay."""
    files = {"10-x.conflist": several("x")}
    target, _, reason = after(files, UNKNOWN)
    assert target == "10-x.conflist"
    assert "not known" in reason
    assert after(after(files, CONTAINERD)[1], UNKNOWN)[0] == OWN


@pytest.mark.parametrize("loading", [CRIO, CONTAINERD, ALL, UNKNOWN])
def test_json_is_a_configuration_like_others(loading: Loading) -> None:
    """What ends in .json counts in its place: no later list is put before it."""
    before = {"10-x.json": single("x"), "20-y.conflist": several("y")}
    target, files, _ = after(before, loading)
    types = [plugin["type"] for plugin in json.loads(files[target])["plugins"]]
    assert types == ["x", "nodeagent"]
    assert json.loads(files[target])["name"] == "net-x", "addresses are accounted under it"
    restored = {**files, **undone(files)}
    assert {name: data for name, data in restored.items() if data is not None} == before


@pytest.mark.parametrize("loading", [CRIO, CONTAINERD, ALL, UNKNOWN])
def test_json_alone(loading: Loading) -> None:
    """A node whose only configuration ends in .json has the plugin too."""
    target, files, _ = after({"10-x.json": single("x")}, loading)
    assert [p["type"] for p in json.loads(files[target])["plugins"]] == ["x", "nodeagent"]


def test_invalid_file_comes_first() -> None:
    """CRI-O passes it over; containerd has no network until it is gone, and gets none by us."""
    files = {"05-broken.conflist": b"{", "10-x.conflist": several("x")}
    assert after(files, CRIO)[0] == OWN
    target, _, reason = after(files, CONTAINERD)
    assert (target, "05-broken.conflist" in reason) == ("10-x.conflist", True)
    # A copy that stands is what the runtime has: it stays.
    standing = after({"10-x.conflist": several("x")}, CONTAINERD)[1]
    assert after({**standing, "05-broken.conflist": b"{"}, CONTAINERD)[0] == OWN


def test_named_primary_is_not_what_is_loaded() -> None:
    """A primary that CNI_CONF_NAME names and another one calls (Multus) gets the entry itself."""
    files = {"05-multus.conf": single("multus"), "10-x.conflist": several("x")}
    target, _, reason = after(files, CONTAINERD, "10-x.conflist")
    assert (target, "05-multus.conf before" in reason) == ("10-x.conflist", True)


def test_list_that_only_a_runtime_can_use() -> None:
    """One with its plugins elsewhere, or one that is too large for us, is not passed over."""
    folder = json.dumps({"cniVersion": "1.1.0", "name": "n"}).encode()
    for data in (folder, several("z") + b" " * (1 << 20)):
        with pytest.raises(NotYetError, match=r"05-z\.conflist: "):
            after({"05-z.conflist": data, "10-x.conflist": several("x")}, CRIO)


_names = st.builds(
    "{:02}-{}.{}".format,
    st.integers(0, 12),
    st.sampled_from("ab"),
    st.sampled_from(["conf", "conflist", "json"]),
)
_contents = st.sampled_from("xyz").flatmap(
    lambda kind: st.sampled_from([single(kind), several(kind), single(kind), b"{", b"[]", b"{}"])
)


@given(
    st.dictionaries(_names, _contents, max_size=5),
    st.sampled_from([CRIO, CONTAINERD, ALL, TWO]),
    st.booleans(),
    st.none() | _names,
)
@pytest.mark.fuzz
def test_pods_keep_their_networks(
    files: dict[str, bytes], truth: Loading, asked: bool, conf_name: str | None
) -> None:
    """Whatever the runtime does, told to us or not: each pod has the networks that it had."""
    try:
        _, there, _ = after(files, truth if asked else UNKNOWN, conf_name or "")
    except NotYetError:
        return
    assert networks(there, truth) == networks(files, truth)
    again = after(there, truth if asked else UNKNOWN, conf_name or "")[1]
    assert again == there


def test_answer_of_containerd() -> None:
    """Its answer is read; one that is not understood is no answer."""
    told = {
        "PluginMaxConfNum": 0,
        "PluginConfDir": "/etc/cni/net.d",
        "PluginDirs": ["/opt/cni/bin"],
    }
    loading = loading_of(json.dumps(told), "containerd 2.1.0")
    assert (loading.most, loading.tolerant) == (0, False)
    assert (loading.conf_dir, loading.bin_dirs) == ("/etc/cni/net.d", ("/opt/cni/bin",))
    for text in ("", "[]", "{", '{"PluginMaxConfNum": "1"}', "[" * 100_000):
        assert loading_of(text, "containerd 1.2.0").most is None
    assert "containerd 1.2.0" in loading_of("", "containerd 1.2.0").source


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_any_answer_is_judged(data: bytes) -> None:
    """No answer of a runtime, and no file, breaks more than itself."""
    loading_of(data.decode(errors="replace"), "x")
    for parse in (ConfList.parse, ConfList.around):
        try:
            parse(data)
        except ConfError:
            continue
