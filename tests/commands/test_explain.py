"""``nodeagent explain``: its page, its exit status, and what it says where it finds no pod."""

import argparse
import asyncio
import json
from pathlib import Path

import pytest

from nodeagent import config
from nodeagent.admin.server import serve_admin
from nodeagent.commands.errors import CommandError
from nodeagent.commands.explain import NOT_IN_ORDER, main, page
from nodeagent.commands.terminal import Terminal


def _link(topic: str, mark: str, says: str, *evidence: str) -> dict[str, object]:
    return {"topic": topic, "mark": mark, "says": says, "evidence": list(evidence)}


_EXPLANATION: dict[str, object] = {
    "namespace": "shop",
    "name": "web",
    "uid": "u1",
    "links": [
        _link("selected", "ok", "yes: pod matches a=b", "selector 1: pod matches a=b"),
        _link("rules, routes", "wrong", "differ", "rules are \x1bmissing"),
        _link("probes", "unknown", "not looked at: x"),
        _link("repairs", "note", "2 times"),
    ],
    "history": [
        {"first": number, "last": number, "times": number, "what": "enrolled", "why": "a=b"}
        for number in range(1, 8)
    ],
    "ok": False,
    "verdict": "should be in the mesh, and is not in order",
    "next_step": "ask again",
}
_OTHER: dict[str, object] = {"namespace": "shop", "name": "web", "uid": "u0"}


def test_one_page() -> None:
    """Each link with its mark and evidence, the last transitions, the verdict, what to do."""
    assert list(page(_EXPLANATION, [_OTHER], Terminal())) == [
        "shop/web  UID u1",
        "  UID u0 has this name, too",
        "ok    selected       yes: pod matches a=b",
        "                       selector 1: pod matches a=b",
        "FAIL  rules, routes  differ",
        "                       rules are \\x1bmissing",
        "?     probes         not looked at: x",
        "-     repairs        2 times",
        "1970-01-01T00:00:03Z  enrolled  a=b (3 times)",
        "1970-01-01T00:00:04Z  enrolled  a=b (4 times)",
        "1970-01-01T00:00:05Z  enrolled  a=b (5 times)",
        "1970-01-01T00:00:06Z  enrolled  a=b (6 times)",
        "1970-01-01T00:00:07Z  enrolled  a=b (7 times)",
        "FAIL  should be in the mesh, and is not in order",
        "next  ask again",
    ]


def test_forty_columns_in_color() -> None:
    """On a narrow terminal nothing is cut off, and what is colored is ours."""
    lines = "\n".join(page(_EXPLANATION, [], Terminal(40))).splitlines()
    assert max(map(len, lines)) <= 40
    assert "selector 1: pod matches" in " ".join("\n".join(lines).split())
    colored = list(page(_EXPLANATION, [], Terminal(100, colors=True)))
    assert "\x1b[31mFAIL  rules, routes  \x1b[0mdiffer" in colored
    assert "rules are \\x1bmissing" in "\n".join(colored)


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, NOT_IN_ORDER)])
async def test_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, ok: bool, status: int
) -> None:
    """0 only for a pod that is as it should be; --json has all that the agent said."""

    async def explain(uid: str) -> object:
        return (_EXPLANATION | {"ok": ok}) if uid == "u1" else None

    settings = config.load({"cni_agent_run_dir": str(tmp_path)}, {})
    async with serve_admin(
        settings.admin_socket,
        workloads=lambda: [_OTHER, _EXPLANATION],
        missing=list,
        answers={"explain": explain},
    ):
        options = argparse.Namespace(pod="web", json=True)
        assert await asyncio.to_thread(main, options, settings) == status
    assert json.loads(capsys.readouterr().out) == _EXPLANATION | {"ok": ok}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop/wep", "the agent knows no pod shop/wep. Did you mean shop/web or shop/db?"),
        ("db", "several pods have the name db; say which: shop/db, bank/db"),
        ("shop/old", "pod shop/old is gone: `nodeagent history shop/old` has its end"),
        ("shop/web", "pod shop/web has gone meanwhile"),
    ],
)
async def test_pod_that_cannot_be_explained(tmp_path: Path, name: str, said: str) -> None:
    """Mistyped, ambiguous, gone for some time, gone right now: each is told apart."""
    workloads: list[dict[str, object]] = [
        {"namespace": namespace, "name": pod, "uid": f"{namespace}-{pod}"}
        for namespace, pod in (("shop", "web"), ("shop", "db"), ("bank", "db"))
    ]

    async def history(_: str) -> object:
        return [{"namespace": "shop", "name": "old", "uid": "u9", "transitions": []}]

    async def explain(_: str) -> object:
        return None

    settings = config.load({"cni_agent_run_dir": str(tmp_path)}, {})
    async with serve_admin(
        settings.admin_socket,
        workloads=lambda: workloads,
        missing=list,
        answers={"history": history, "explain": explain},
    ):
        with pytest.raises(CommandError) as error:
            await asyncio.to_thread(main, argparse.Namespace(pod=name, json=False), settings)
    assert str(error.value) == said
