"""The installer on real directories, told by inotify."""

import asyncio
import itertools
import json
import os
import shutil
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from nodeagent.cni.install import installer as module
from nodeagent.cni.install import repair
from nodeagent.cni.install.loading import Loading
from nodeagent.cni.install.plan import plan
from nodeagent.cni.install.reverting import RepairThrottle
from tests.cni.install.installing import (
    CORPUS,
    CRIO,
    ENTRY,
    FLANNEL,
    OWN,
    Node,
    installed,
    put,
    said,
)
from tests.eventually import PATIENCE, eventually


async def test_binary_and_own_file(node: Node) -> None:
    """The binary is executable and whole, our file is private, the primary's own is untouched."""
    primary = node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
    binary = node.bin / "nodeagent"
    assert binary.read_bytes() == node.source.read_bytes()
    assert binary.stat().st_mode & 0o7777 == 0o755
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]
    assert (node.net / OWN).stat().st_mode & 0o7777 == 0o600
    assert primary.read_bytes() == (CORPUS / FLANNEL).read_bytes()
    assert sorted(os.listdir(node.bin)) == ["nodeagent"]
    assert sorted(os.listdir(node.net)) == [OWN, FLANNEL]


async def test_mode_and_owner_are_kept(node: Node) -> None:
    """A file that is not ours keeps its mode, also through its conversion; so does its owner."""
    node.has("99-bridge-crlf.conf").chmod(0o644)
    before = (node.net / "99-bridge-crlf.conf").stat()
    async with node.installing(own_file=None) as installer:
        await installed(installer)
    after = (node.net / "99-bridge-crlf.conflist").stat()
    assert after.st_mode == before.st_mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert not (node.net / "99-bridge-crlf.conf").exists()


async def test_waits_for_the_primary(node: Node) -> None:
    """On a fresh node it waits, says so once, and installs when the primary is there."""
    with capture_logs() as log:
        async with node.installing() as installer:
            await eventually(said(log, "no CNI plugin has written"))
            await node.settled(installer)
            assert not installer.installed.is_set()
            node.has(FLANNEL)
            await installed(installer)
    assert [entry["event"] for entry in log].count("cni plugin cannot be installed yet") == 1
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]


@pytest.mark.parametrize("own_file", [OWN, None])
async def test_whole_again_at_once(node: Node, own_file: str | None) -> None:
    """L3: an entry that was removed, a list written anew, a file deleted: back within a second."""
    node.has(FLANNEL)
    target = own_file or FLANNEL
    async with node.installing(own_file=own_file) as installer:
        await installed(installer)
        whole = (node.net / target).read_bytes()
        put(node.net / target, (CORPUS / FLANNEL).read_bytes())
        await eventually(lambda: (node.net / target).read_bytes() == whole)


async def test_deleted_own_file_comes_back(node: Node) -> None:
    """L3: our own file is back at once when somebody deletes it."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
        (node.net / OWN).unlink()
        await node.chained()


async def test_edited_entry_is_put_right(node: Node) -> None:
    """An entry that somebody has edited is as it should be again."""
    node.has(FLANNEL)
    async with node.installing() as installer:
        await installed(installer)
        whole = (node.net / OWN).read_bytes()
        put(node.net / OWN, whole.replace(b"pluginevent", b"elsewhere"))
        await eventually(lambda: (node.net / OWN).read_bytes() == whole)


@pytest.mark.parametrize("harm", ["deleted", "changed", "not executable", "link"])
async def test_binary_comes_back(node: Node, harm: str) -> None:
    """A binary that is not what it should be is replaced, a link by a file."""
    node.has(FLANNEL)
    binary = node.bin / "nodeagent"
    async with node.installing() as installer:
        await installed(installer)
        await node.settled(installer)
        match harm:
            case "deleted":
                binary.unlink()
            case "changed":
                put(binary, b"something else")
                binary.chmod(0o755)
            case "not executable":
                binary.chmod(0o644)
            case "link":
                shutil.copy2(binary, node.root / "elsewhere")
                binary.unlink()
                binary.symlink_to(node.root / "elsewhere")
        await eventually(
            lambda: (
                binary.is_file()
                and not binary.is_symlink()
                and binary.read_bytes() == node.source.read_bytes()
                and binary.stat().st_mode & 0o7777 == 0o755
            )
        )


async def test_in_step_with_the_primary(node: Node) -> None:
    """L3: what the primary's owner changes is in our copy at once, and nobody is accused."""
    primary = node.has(FLANNEL)
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
            put(primary, primary.read_bytes().replace(b'"hairpinMode": true', b'"mtu": 1400'))
            await eventually(lambda: b'"mtu": 1400' in (node.net / OWN).read_bytes())
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]
    assert not said(log, "put back")()


async def test_new_primary_that_sorts_before(node: Node) -> None:
    """A primary that comes before the old one is the one that counts from then on."""
    node.has("10-weave.conflist")
    async with node.installing() as installer:
        await installed(installer)
        node.has("05-cilium.conflist")
        await eventually(lambda: node.types(OWN) == ["cilium-cni", "nodeagent"])


async def test_primary_is_rewritten_by_deleting_it(node: Node) -> None:
    """While the primary is away for a moment, ours stays, and is not made of another file."""
    primary = node.has(FLANNEL)
    node.has("10-weave.conflist")
    async with node.installing() as installer:
        await installed(installer)
        whole = (node.net / OWN).read_bytes()
        primary.unlink()
        await node.settled(installer)
        assert (node.net / OWN).read_bytes() == whole
        node.has(FLANNEL)
        await node.settled(installer)
        assert (node.net / OWN).read_bytes() == whole


async def test_primary_is_gone_for_good(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the grace our copy goes: no node looks ready with a network that nobody runs."""
    monkeypatch.setattr(repair, "GRACE", 0.1)
    primary = node.has(FLANNEL)
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
            primary.unlink()
            await eventually(lambda: node.files() == {})
            node.has(FLANNEL)
            await node.chained()
    assert said(log, "ours goes too")()


async def test_brake_and_diagnosis(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who keeps reverting is met at most once a second, and named with the setting."""
    repairs: list[float] = []
    original = RepairThrottle.repaired

    def repaired(self: RepairThrottle, now: float) -> bool:
        repairs.append(now)
        return original(self, now)

    monkeypatch.setattr(RepairThrottle, "repaired", repaired)
    node.has("05-cilium.conflist")
    ours = node.net / OWN
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
            for _ in range(3):
                await asyncio.to_thread(os.rename, ours, f"{ours}.cilium_bak")
                await node.chained()
            await eventually(said(log, "cni.exclusive=false"))
    assert len(repairs) == 3
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(repairs))


async def test_invalid_files_are_warned_of_once(node: Node) -> None:
    """An invalid file is passed over with one warning, and with another when it has changed."""
    (node.net / "00-broken.conflist").write_text("{")
    node.has(FLANNEL)
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
            await node.settled(installer)
            put(node.net / "00-broken.conflist", b'{"name": "n", "plugins": 5}')
            await eventually(said(log, '"plugins" is not a list'))
    passed_over = [e["reason"] for e in log if e["event"] == "cni configuration passed over"]
    assert len(passed_over) == 2
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]


async def test_restart_touches_nothing(node: Node) -> None:
    """L17: a stop leaves everything, and the next start writes nothing that is right."""
    node.has(FLANNEL)
    stats = []
    for _ in range(2):
        async with node.installing() as installer:
            await installed(installer)
        paths = (node.net / OWN, node.bin / "nodeagent", node.net / FLANNEL)
        stats.append([(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths])
    assert stats[0] == stats[1]


async def test_two_agents_alike(node: Node) -> None:
    """During a restart with surge two installers with the same settings do not write in turns."""
    primary = node.has(FLANNEL)
    async with node.installing() as one, node.installing() as other:
        await installed(one)
        await installed(other)
        put(primary, primary.read_bytes().replace(b'"hairpinMode": true', b'"mtu": 1400'))
        await eventually(lambda: b'"mtu": 1400' in (node.net / OWN).read_bytes())
        await node.settled(one, other)
        settled = (node.net / OWN).stat().st_mtime_ns
        for _ in range(3):
            put(node.net / "unrelated", b"")
            await node.settled(one, other)
        assert (node.net / OWN).stat().st_mtime_ns == settled
    assert node.types(OWN) == ["flannel", "portmap", "nodeagent"]


@pytest.mark.parametrize("own_file", [OWN, None])
async def test_upgrade_with_surge(node: Node, own_file: str | None) -> None:
    """Of two agents that differ the later one's entry and binary stand while both run."""
    node.has(FLANNEL)
    newer_source = node.root / "newer"
    newer_source.write_bytes(b"\x7fELF-two")
    newer_entry = {**ENTRY, "socket": "/newer.sock"}
    target = node.net / (own_file or FLANNEL)
    with capture_logs() as log:
        async with node.installing(own_file=own_file) as old:
            await installed(old)
            async with node.installing(
                own_file=own_file, entry=newer_entry, binary_source=str(newer_source)
            ) as newer:
                await installed(newer)
                await eventually(said(log, "another agent that started later"))
                await eventually(
                    lambda: (
                        b"/newer.sock" in target.read_bytes()
                        and (node.bin / "nodeagent").read_bytes() == b"\x7fELF-two"
                    )
                )
    assert node.types(target.name) == ["flannel", "portmap", "nodeagent"]
    assert sum(entry["event"] == "cni plugin put back" for entry in log) <= 2


async def test_earlier_agent_is_left_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that a failed upgrade leaves behind gets its own entry back after the overlap."""
    monkeypatch.setattr(repair, "OVERLAP", 0.1)
    node.has(FLANNEL)
    async with node.installing() as old:
        await installed(old)
        async with node.installing(entry={**ENTRY, "socket": "/newer.sock"}) as newer:
            await installed(newer)
        await eventually(lambda: b"/newer.sock" not in (node.net / OWN).read_bytes())


async def test_stand_alone(node: Node) -> None:
    """Not chained, it needs no primary, and touches none."""
    async with node.installing(chained=False, own_file=None) as installer:
        await installed(installer)
        node.has("00-multus.conf")
    assert set(node.files()) == {"00-multus.conf", "YYY-istio-cni.conf"}
    assert json.loads((node.net / "YYY-istio-cni.conf").read_bytes())["type"] == "nodeagent"


async def test_runtime_answers_late(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the runtime tells what it loads, the entry is where it cannot harm; then it moves."""
    monkeypatch.setattr(module, "ASK_SOON", 0.05)
    primary = node.has(FLANNEL)
    node.loading = Loading(source="nobody listens; set CONTAINER_RUNTIME_ENDPOINT")
    with capture_logs() as log:
        async with node.installing() as installer:
            await installed(installer)
            assert node.types(FLANNEL) == ["flannel", "portmap", "nodeagent"]
            assert OWN not in node.files()
            node.loading = CRIO
            await node.chained()
            await eventually(lambda: node.types(FLANNEL) == ["flannel", "portmap"])
    assert primary.read_bytes() == (CORPUS / FLANNEL).read_bytes()
    warnings = [entry for entry in log if entry["log_level"] != "info"]
    assert [entry["reason"] for entry in warnings] == [
        "it is not known which files are loaded: nobody listens; set CONTAINER_RUNTIME_ENDPOINT"
    ]


async def test_runtime_that_restarts_is_believed_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the runtime does not answer, what it said last holds: our own file stays."""
    monkeypatch.setattr(module, "ASK_AGAIN", 0.02)
    node.has(FLANNEL)
    asked = 0

    async def told() -> Loading:
        nonlocal asked
        asked += 1
        return CRIO if asked == 1 else Loading(source="nobody listens")

    async with node.installing(loading=told) as installer:
        await installed(installer)
        whole = node.files()
        await eventually(lambda: asked > 3)
        (node.net / OWN).unlink()
        await node.chained()
        assert node.files() == whole


async def test_istio_is_taken_over(node: Node) -> None:
    """A chain with Istio's entry gets ours in its place, and that is said."""
    primary = node.has(FLANNEL)
    put(primary, primary.read_bytes().replace(b'"portmap"', b'"istio-cni"'))
    with capture_logs() as log:
        async with node.installing(own_file=None) as installer:
            await installed(installer)
    assert node.types(FLANNEL) == ["flannel", "nodeagent"]
    assert said(log, "istio-cni's entry is taken over")()


async def test_stops_only_when_its_hands_are_still(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L18: a cancelled installer writes nothing any more: an uninstallation may follow."""
    node.has(FLANNEL)
    begun, may_go_on = threading.Event(), threading.Event()

    def slow_plan(*args: Any) -> Any:
        begun.set()
        may_go_on.wait(PATIENCE)
        return plan(*args)

    monkeypatch.setattr("nodeagent.cni.install.repair.plan", slow_plan)
    task = asyncio.create_task(node.installer().run())
    await eventually(begun.is_set)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.1)
    may_go_on.set()
    await asyncio.wait([task], timeout=PATIENCE)
    assert not done
    assert task.cancelled()
    assert node.types(OWN)[-1:] == ["nodeagent"]
