"""Asking the running agent on behalf of a command, and finding the pod that a person means."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nodeagent.admin.client import NoAgentError, ask
from nodeagent.commands.errors import CommandError
from nodeagent.config import Settings

_OFFERED = 3
"""Names that are offered where none is the one that was asked for."""

Named = Mapping[str, Any]
"""Something with the ``namespace``, the ``name`` and the ``uid`` of a pod."""


def answer(settings: Settings, question: str, *, uid: str = "", seconds: float = 5.0) -> Any:
    """Ask the agent; see `nodeagent.admin.client.ask`. Raises ``CommandError``."""
    try:
        return ask(settings.admin_socket, question, uid=uid, seconds=seconds)
    except NoAgentError as error:
        raise CommandError(str(error)) from error


@contextlib.contextmanager
def understanding() -> Iterator[None]:
    """Read answers in this context: raises ``CommandError`` where one lacks what it should have."""
    try:
        yield
    except KeyError as error:
        raise CommandError(
            f"the agent's answer has no {error}: agent and command are of different versions;"
            " use the nodeagent of the agent's own image"
        ) from error


def meant(wanted: str, pods: Iterable[Named]) -> list[Named]:
    """Those of `pods` that `wanted` names: ``NAMESPACE/POD``, ``POD`` or a UID.

    Raises ``CommandError`` where there is none, with the names that are nearest to it.
    """
    known = list(pods)
    found = [pod for pod in known if wanted in {f"{pod['namespace']}/{pod['name']}", pod["uid"]}]
    if not found and "/" not in wanted:
        found = [pod for pod in known if pod["name"] == wanted]
    if not found:
        raise CommandError(f"the agent knows no pod {wanted}. {_hint(wanted, known)}")
    return found


def _hint(wanted: str, known: list[Named]) -> str:
    import difflib  # noqa: PLC0415 - only where a name was mistyped

    _, slash, name = wanted.rpartition("/")
    full_names: dict[str, list[str]] = {}
    for pod in known:
        full = f"{pod['namespace']}/{pod['name']}"
        for key in {full, str(pod["name"])}:
            full_names.setdefault(key, []).append(full)
    near = difflib.get_close_matches(wanted, full_names, _OFFERED) if slash else []
    # The name alone, too: the namespace may be the wrong one.
    near += difflib.get_close_matches(name, full_names, _OFFERED)
    offered = list(dict.fromkeys(full for key in near for full in full_names[key]))[:_OFFERED]
    if offered:
        return f"Did you mean {' or '.join(offered)}?"
    return (
        f"It knows {len(known)}: `nodeagent status` has them. Is the pod on this node?"
        " `kubectl get pod -o wide` shows each pod's node"
    )
