"""Where a sandbox's namespace is, by what container runtimes say beyond CRI's contract."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netns.cri import netns_paths

PATH = "/var/run/netns/cni-1"


def info(**changes: object) -> str:
    """What containerd says, but for `changes`; None takes a field out."""
    spaces = [{"type": "pid"}, {"type": "network", "path": PATH}]
    said: dict[str, object] = {"pid": 7, "runtimeSpec": {"linux": {"namespaces": spaces}}}
    said |= changes
    return json.dumps({key: value for key, value in said.items() if value is not None})


@pytest.mark.parametrize("pid", [None, 0, -1, True, "7", 1 << 40, [], 7.5])
def test_no_process(pid: object) -> None:
    """CRI-O says no process, or 0, of a pod without an infra container: the path does it."""
    assert netns_paths(info(pid=pid)) == [PATH]


def test_path_and_process() -> None:
    """The path comes first; the process is there where the path is not to be seen."""
    assert netns_paths(info()) == [PATH, "/proc/7/ns/net"]


@pytest.mark.parametrize(
    "spec",
    [
        None,
        7,
        {},
        {"linux": None},
        {"linux": {"namespaces": None}},
        {"linux": {"namespaces": [7, {"type": "network"}, {"type": "network", "path": 7}]}},
    ],
)
def test_no_path(spec: object) -> None:
    """A specification that says no path leaves the process."""
    assert netns_paths(info(runtimeSpec=spec)) == ["/proc/7/ns/net"]


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.fuzz
@given(
    st.text()
    | json_values.map(json.dumps)
    | json_values.map(lambda value: info(pid=value))
    | json_values.map(lambda value: info(runtimeSpec=value))
    | json_values.map(lambda value: info(runtimeSpec={"linux": {"namespaces": [value]}}))
    | st.just("[" * 100_000)
    | st.just("9" * 10_000)
)
def test_any_text(text: str) -> None:
    """Whatever a runtime says, there are paths in it or none."""
    assert all(isinstance(path, str) and path for path in netns_paths(text))
