"""``nodeagent verify``: its lines and its exit status."""

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from nodeagent import config
from nodeagent.admin.server import serve_admin
from nodeagent.commands.errors import CommandError
from nodeagent.commands.terminal import Terminal
from nodeagent.commands.verify import NOT_REDIRECTED, lines, main


def _pod(name: str, *, wanted: str = "yes", ok: bool = True) -> dict[str, object]:
    reason = "a reason" if wanted == "no" else "all right" if ok else "rules are \x1bmissing"
    return {
        "namespace": "shop",
        "name": name,
        "uid": f"uid-{name}",
        "wanted": wanted,
        "ok": ok,
        "reason": reason,
    }


_WEB, _DB, _CRON = _pod("web"), _pod("db", ok=False), _pod("cron", wanted="no")


def test_a_line_for_each_pod() -> None:
    """By name, with a mark that needs no color, and the numbers at the end."""
    assert list(lines([_WEB, _DB, _CRON], [], Terminal())) == [
        "-     shop/cron  a reason",
        "FAIL  shop/db    rules are \\x1bmissing",
        "ok    shop/web   all right",
        "2 of 3 pods should be redirected; in order: 1, not in order: 1",
    ]


def test_colors_are_ours_alone() -> None:
    """On a terminal the marks have colors."""
    first, *_ = lines([_DB], [], Terminal(80, colors=True))
    assert first == "\x1b[31mFAIL  shop/db  \x1b[0mrules are \\x1bmissing"


def test_forty_columns() -> None:
    """A narrow terminal gets every word."""
    text = list(lines([_WEB, _DB], ["the first list of pods"], Terminal(40)))
    assert max(len(line) for each in text for line in each.splitlines()) <= 40


@pytest.mark.parametrize(
    ("pods", "missing", "status"),
    [
        ([_WEB, _CRON], [], 0),
        ([], [], 0),
        ([_WEB, _DB], [], NOT_REDIRECTED),
        ([_pod("new", wanted="unknown", ok=False)], [], NOT_REDIRECTED),
        ([_WEB], ["the first list of pods"], NOT_REDIRECTED),
    ],
)
async def test_exit_status(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pods: list[Mapping[str, object]],
    missing: list[str],
    status: int,
) -> None:
    """0 only where every pod is known and each that should be is redirected (L4, L16)."""

    async def verify(uid: str) -> object:
        assert not uid
        return {"pods": pods, "missing": missing}

    settings = config.load({"cni_agent_run_dir": str(tmp_path)}, {})
    options = argparse.Namespace(pods=[], json=True)
    path = settings.admin_socket
    async with serve_admin(path, workloads=list, missing=list, answers={"verify": verify}):
        assert await asyncio.to_thread(main, options, settings) == status
    assert json.loads(capsys.readouterr().out) == {"pods": pods, "missing": missing}


async def test_pods_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only those are looked at; one that goes meanwhile is an error, not a success."""
    by_uid = {"uid-web": _WEB, "uid-db": _DB}

    async def verify(uid: str) -> object:
        return by_uid.get(uid)

    settings = config.load({"cni_agent_run_dir": str(tmp_path)}, {})

    def ran(*names: str) -> int:
        return main(argparse.Namespace(pods=names, json=False), settings)

    async with serve_admin(
        settings.admin_socket,
        workloads=lambda: [_WEB, _DB, _CRON],
        missing=list,
        answers={"verify": verify},
    ):
        assert await asyncio.to_thread(ran, "web", "shop/web") == 0
        assert await asyncio.to_thread(ran, "web", "uid-db") == NOT_REDIRECTED
        with pytest.raises(CommandError, match="shop/cron has gone meanwhile"):
            await asyncio.to_thread(ran, "cron")
        with pytest.raises(CommandError, match="Did you mean shop/web"):
            await asyncio.to_thread(ran, "shop/wep")
    assert capsys.readouterr().out.count("shop/web") == 2
