"""Which pod a person means, and agents of another version."""

import argparse
import asyncio
from pathlib import Path
from types import ModuleType

import pytest

from nodeagent import config
from nodeagent.admin.server import serve_admin
from nodeagent.commands import explain, history, status, verify
from nodeagent.commands.asking import meant
from nodeagent.commands.errors import CommandError

_PODS = [
    {"namespace": namespace, "name": name, "uid": uid}
    for namespace, name, uid in [
        ("shop", "web-7f9c", "u1"),
        ("shop", "db-0", "u2"),
        ("bank", "db-0", "u3"),
        ("shop", "db-0", "u4"),
    ]
]


@pytest.mark.parametrize(
    ("wanted", "uids"),
    [
        ("shop/web-7f9c", ["u1"]),
        ("web-7f9c", ["u1"]),
        ("db-0", ["u2", "u3", "u4"]),
        ("shop/db-0", ["u2", "u4"]),
        ("u3", ["u3"]),
    ],
)
def test_names(wanted: str, uids: list[str]) -> None:
    """With its namespace, without it, or by its UID; one name can be several pods (L38)."""
    assert [pod["uid"] for pod in meant(wanted, _PODS)] == uids


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("shop/web-7f9d", "Did you mean shop/web-7f9c"),
        ("web7f9c", "Did you mean shop/web-7f9c"),
        ("bnak/web-7f9c", "Did you mean shop/web-7f9c"),
        ("db-1", "Did you mean shop/db-0 or bank/db-0"),
        ("zzzzzzzz", "It knows 4: `nodeagent status` has them. Is the pod on this node?"),
        ("", "It knows 4"),
        ("/", "It knows 4"),
    ],
)
def test_a_name_that_nobody_has(wanted: str, offered: str) -> None:
    """The nearest names are offered, or the question where the pod is."""
    with pytest.raises(CommandError) as error:
        meant(wanted, _PODS)
    assert f"the agent knows no pod {wanted}. {offered}" in str(error.value)


@pytest.mark.parametrize("command", [explain, history, status, verify])
async def test_agent_of_another_version(tmp_path: Path, command: ModuleType) -> None:
    """An answer that lacks what the command needs is no traceback; the remedy is named."""

    async def strange(_: str) -> object:
        return {"pods": [{}]} if command is verify else [{"namespace": "shop"}]

    settings = config.load({"cni_agent_run_dir": str(tmp_path)}, {})
    options = argparse.Namespace(pods=["web"] if command is history else [], pod="web", json=False)
    async with serve_admin(
        settings.admin_socket,
        workloads=lambda: [{"namespace": "shop"}],
        missing=list,
        answers={"history": strange, "verify": strange, "explain": strange},
    ):
        with pytest.raises(CommandError, match=r"has no '\w+': .* different versions; .* image"):
            await asyncio.to_thread(command.main, options, settings)
