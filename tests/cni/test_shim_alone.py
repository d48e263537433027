"""The binary when the agent cannot be reached: who waits, and who is let through."""

import asyncio
import contextlib
import functools
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cni.shim_process import (
    AGENT,
    EXCLUDED,
    ORDINARY,
    PREVIOUS,
    ZTUNNEL,
    Finished,
    ModelAgent,
    Talk,
    build_shim,
    configuration,
    run,
    start,
    stranger,
)
from tests.eventually import eventually

HARMLESS = ["DEL", "GC", "STATUS"]


async def _closes(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def _hangs(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _says(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"}}")
    writer.write(answer)
    await writer.drain()


async def _trickles(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n{")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def _answer(body: bytes, *, head: bytes = b"", status: bytes = b"200 OK") -> Talk:
    length = b"" if head else b"Content-Length: %d\r\n" % len(body)
    return functools.partial(
        _says, b"HTTP/1.1 " + status + b"\r\n" + head + length + b"\r\n" + body
    )


STRANGERS: dict[str, Talk] = {
    "closes at once": _closes,
    "hangs": _hangs,
    "trickles for ever": _trickles,
    "closes in the head": functools.partial(_says, b"HTTP/1.1 200 OK\r\nContent-Le"),
    "closes in the body": _answer(b'{"a":', head=b"Content-Length: 7\r\n"),
    "speaks no HTTP": functools.partial(_says, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "head without end": functools.partial(_says, b"x" * 2_000_000),
    "giant body": _answer(b'{"a":"' + b"a" * 3_000_000 + b'"}'),
    "absurd length": _answer(b"{}", head=b"Content-Length: 99999999999999999999999\r\n"),
    "negative length": _answer(b"{}", head=b"Content-Length: -2\r\n"),
    "two lengths": _answer(b"{}", head=b"Content-Length: 2\r\nContent-Length: 1\r\n"),
    "no length": _answer(b"{}", head=b"Server: x\r\n"),
    "chunked": _answer(b"2\r\n{}\r\n0\r\n\r\n", head=b"Transfer-Encoding: chunked\r\n"),
    "chunked, with a length": _answer(
        b"2\r\n{}", head=b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"
    ),
    "plain 500": _answer(b"Server got itself in trouble", status=b"500 Internal Server Error"),
    "empty 404": _answer(b"", status=b"404 Not Found"),
    "success of no JSON": _answer(b"ok"),
    "success cut short": _answer(b'{"a":1'),
    "interim status": _answer(b"{}", status=b"100 Continue"),
}
"""What may answer in the agent's place, each by its fault."""


AWAY = ["no socket", "nobody listens", "full queue"]


@contextlib.asynccontextmanager
async def _nobody(path: Path, fault: str) -> AsyncIterator[None]:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        if fault != "no socket":
            listener.bind(str(path))
        if fault == "full queue":
            listener.listen(0)
            first.connect(str(path))
        yield


@pytest.fixture(params=[*AWAY, *STRANGERS])
async def no_agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Path]:
    """The path of a socket behind which no agent works."""
    path = tmp_path / "pluginevent.sock"
    talk = STRANGERS.get(request.param)
    async with stranger(path, talk) if talk else _nobody(path, request.param):
        yield path


async def test_each_call_without_an_agent(hasty_shim: Path, no_agent: Path) -> None:
    """L15, L16, L18: mesh pods wait with a reason, excluded ones, the agent's and ztunnel's
    start, no pod hangs in Terminating, and the node stays ready.
    """
    stdin = configuration(no_agent)
    calls = [
        *(("ADD", ORDINARY), ("CHECK", ORDINARY)),
        *(("ADD", EXCLUDED), ("CHECK", EXCLUDED), ("ADD", AGENT), ("CHECK", AGENT)),
        *(("ADD", ZTUNNEL), ("CHECK", ZTUNNEL)),
        *((command, ORDINARY) for command in ("DEL", "GC", "STATUS")),
    ]
    running = (run(hasty_shim, command, stdin, arguments=who) for command, who in calls)
    add, check, *rest = await asyncio.gather(*running)
    for waiting in (add, check):
        assert waiting.error["cniVersion"] == "1.0.0"
        assert waiting.error["code"] == 11
        assert str(no_agent) in waiting.error["msg"]
        assert "-n istio-system" in waiting.error["msg"]
    passed, silent = Finished(0, PREVIOUS), Finished(0, b"")
    assert rest == [*[passed, silent] * 3, silent, silent, silent]


WHO_STARTS = {
    EXCLUDED: True,
    AGENT: True,
    ZTUNNEL: True,
    "K8S_POD_NAMESPACE=kube-system": True,
    "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAMESPACE=shop": False,
    "K8S_POD_NAMESPACE=kube-systemd": False,
    "K8S_POD_NAMESPACE=kube-syste": False,
    "XK8S_POD_NAMESPACE=kube-system": False,
    "K8S_POD_NAMESPACE_kube-system": False,
    "K8S_POD_NAMESPACE": False,
    "K8S_POD_NAMESPACE=": False,
    "": False,
    ";;=;": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-00000": True,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-0000": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-000000": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-0000A": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-00-00": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=nodeagent-x-x2x4z": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istiodddd-x2x4z": False,
    "K8S_POD_NAMESPACE=istio-system": False,
    "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=nodeagent-x2x4z": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-x2x4": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-x2x4z-0": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=ztunnel-": False,
    "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istiod-5d9f-x2x4z": False,
    "K8S_POD_NAMESPACE=istio-systemd;K8S_POD_NAME=ztunnel-x2x4z": False,
    "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=ztunnel-x2x4z": False,
    "K8S_POD_NAME=ztunnel-x2x4z": False,
}


async def test_who_starts_without_an_agent(hasty_shim: Path, tmp_path: Path) -> None:
    """L16: only excluded namespaces, and pods named as the agent's DaemonSet or ztunnel's does."""
    stdin = configuration(tmp_path / "absent")
    calls = (run(hasty_shim, "ADD", stdin, arguments=who) for who in WHO_STARTS)
    started = [done.status == 0 for done in await asyncio.gather(*calls)]
    assert dict(zip(WHO_STARTS, started, strict=True)) == WHO_STARTS


EXCUSES_NOBODY = [
    "null",
    "{}",
    "7",
    '["kube-system"]',
    '{"namespaces":"kube-system","agent":"istio-system"}',
    '{"namespaces":{"kube-system":1},"agent":{"namespace":"istio-system","podPrefix":""}}',
    '{"namespaces":[7,null,["kube-system"],{}],"agent":{"podPrefix":"nodeagent-"}}',
    '{"namespaces":[],"agent":{"namespace":null,"podPrefix":"nodeagent-"}}',
    '{"namespaces":["kube\\u002dsystem"]}',
    '{"pods":{"namespace":"istio-system","podPrefix":"ztunnel-"}}',
    '{"pods":"istio-system/ztunnel-"}',
    '{"pods":[7,null,[],"ztunnel-",{},{"namespace":"istio-system"},{"podPrefix":"ztunnel-"}]}',
    '{"pods":[{"namespace":"istio-system","podPrefix":""}]}',
    '{"pods":[{"namespace":"istio-system","podPrefix":["ztunnel-"]}]}',
    '{"pods":[{"namespace":{},"podPrefix":"ztunnel-"}]}',
]


async def test_entry_of_a_wrong_shape_excuses_nobody(hasty_shim: Path) -> None:
    """L16: what the entry does not say clearly is no leave to start outside the mesh."""
    entries = [f'{{"socket":"/absent","letThrough":{entry}}}' for entry in EXCUSES_NOBODY]
    calls = (
        run(hasty_shim, "ADD", entry.encode(), arguments=who)
        for entry in entries
        for who in (EXCLUDED, AGENT, ZTUNNEL)
    )
    codes = [done.error["code"] for done in await asyncio.gather(*calls)]
    assert codes == [11] * 3 * len(EXCUSES_NOBODY)


async def test_every_daemon_set_of_the_entry_starts(hasty_shim: Path) -> None:
    """The list is read to its end, whatever stands between."""
    pods = '[7, {"namespace":"a","podPrefix":"x-"} ,{},{"podPrefix":"y-","namespace":"b"}]'
    entry = f'{{"socket":"/absent","letThrough":{{"pods":{pods}}}}}'
    who = {"a;K8S_POD_NAME=x-00000": 0, "b;K8S_POD_NAME=y-00000": 0, "a;K8S_POD_NAME=y-00000": 1}
    arguments = [f"K8S_POD_NAMESPACE={namespace}" for namespace in who]
    calls = (run(hasty_shim, "ADD", entry.encode(), arguments=one) for one in arguments)
    assert [done.status for done in await asyncio.gather(*calls)] == list(who.values())


@pytest.mark.parametrize("previous", [None, b"null", b"[1]", b"7"])
async def test_no_previous_result(checked_shim: Path, previous: bytes | None) -> None:
    """A pod that is let through has an empty result where no plugin ran before."""
    stdin = configuration("/absent", previous)
    done = await run(checked_shim, "ADD", stdin, arguments=EXCLUDED)
    assert done == Finished(0, b'{"cniVersion":"1.0.0"}')


async def test_last_of_equal_keys_counts(checked_shim: Path) -> None:
    """A repeated key means here what it means to the runtime and to the agent."""
    stdin = b'{"prevResult":{"a":1},' + configuration("/absent", b'{"a":2}')[1:]
    done = await run(checked_shim, "ADD", stdin, arguments=EXCLUDED)
    assert done == Finished(0, b'{"a":2}')


@pytest.mark.parametrize("fault", ["no socket", "nobody listens"])
async def test_restart_of_the_agent_is_not_noticed(
    checked_shim: Path, tmp_path: Path, fault: str
) -> None:
    """A pod that starts while the agent restarts waits for it, and starts."""
    agent = ModelAgent(tmp_path / "pluginevent.sock")
    async with _nobody(agent.socket, fault):
        process = await start(checked_shim, {"CNI_COMMAND": "ADD", "CNI_ARGS": ORDINARY})
        call = asyncio.create_task(process.communicate(configuration(agent.socket)))
        at_first = _pauses(process.pid)
        await eventually(lambda: _pauses(process.pid) > at_first + 2)
        agent.socket.unlink(missing_ok=True)
        async with agent.listening():
            assert await call == (PREVIOUS, b"")


def _pauses(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


async def test_agent_that_dies_over_an_add(checked_shim: Path, tmp_path: Path) -> None:
    """A request that the old agent took with it is made again to the new one."""
    agent = ModelAgent(tmp_path / "pluginevent.sock")
    taken = asyncio.Event()

    async def dies(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}")
        agent.socket.unlink()
        taken.set()

    async with stranger(agent.socket, dies):
        call = asyncio.create_task(run(checked_shim, "ADD", configuration(agent.socket)))
        await taken.wait()
    async with agent.listening():
        assert await call == Finished(0, PREVIOUS)
    assert len(agent.bodies) == 1


async def test_wrong_answer_is_an_answer(checked_shim: Path, tmp_path: Path) -> None:
    """Something that answers as no agent does is asked once, not until patience ends."""
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"}}"))
        writer.write(b"220 ready\r\n\r\n")
        await writer.drain()

    async with stranger(tmp_path / "socket", talk):
        done = await run(checked_shim, "ADD", configuration(tmp_path / "socket"))
    assert done.error["code"] == 11
    assert len(asked) == 1


async def test_result_of_an_add_is_not_empty(checked_shim: Path, model_agent: ModelAgent) -> None:
    """L16: an ADD that succeeds without a result has not succeeded."""
    model_agent.body = b""
    assert (await run(checked_shim, "ADD", configuration(model_agent.socket))).error["code"] == 11


async def test_only_those_wait_that_need_the_agent(checked_shim: Path, shim: Path) -> None:
    """L15: nobody waits for an agent whose answer does not matter, its own pod least of all."""
    stdin = configuration("/absent")
    excused = (("ADD", who) for who in (EXCLUDED, AGENT, ZTUNNEL))
    calls = [*excused, *((command, ORDINARY) for command in HARMLESS)]
    # Whoever waited would wait for an hour.
    running = (run(checked_shim, command, stdin, arguments=who) for command, who in calls)
    assert {done.status for done in await asyncio.gather(*running)} == {0}
    started = time.monotonic()
    assert (await run(shim, "ADD", stdin)).error["code"] == 11
    assert time.monotonic() - started >= 3


BAD_INPUTS = {
    "nothing": (b"", 6),
    "no JSON": (b'{"cniVersion":"1.0.0",}', 6),
    "no object": (b'["1.0.0"]', 6),
    "two objects": (b"{}{}", 6),
    "too deep": (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", 6),
    "too large": (b'{"a":"' + b"a" * 1024 * 1024 + b'"}', 6),
    "no socket": (b'{"cniVersion":"1.0.0"}', 7),
    "socket of a wrong type": (b'{"socket":["/a"]}', 7),
    "socket with a path too long": (b'{"socket":"/%b"}' % (b"a" * 108), 7),
}


@pytest.mark.parametrize(("stdin", "code"), BAD_INPUTS.values(), ids=BAD_INPUTS)
async def test_input_that_is_no_use(checked_shim: Path, stdin: bytes, code: int) -> None:
    """Bad input is CNI's error for it, and still nothing hangs in Terminating (L18)."""
    assert (await run(checked_shim, "ADD", stdin)).error["code"] == code
    assert await run(checked_shim, "DEL", stdin) == Finished(0, b"")


async def test_input_that_never_ends(tmp_path: Path) -> None:
    """A caller that keeps standard input open does not keep the binary."""
    process = await start(build_shim(tmp_path / "shim", reading=0.5), {"CNI_COMMAND": "ADD"})
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b'{"cniVersion":"1.0.0",')
    error = json.loads(await process.stdout.read())
    assert error["code"] == 6
    assert "timed out" in error["msg"]
    assert await process.wait() == 1
    process.stdin.close()


@pytest.mark.parametrize("environment", [{}, {"CNI_COMMAND": ""}, {"CNI_COMMAND": "add"}])
async def test_unknown_command(checked_shim: Path, environment: dict[str, str]) -> None:
    """A command that CNI does not have is CNI's error for it."""
    process = await start(checked_shim, environment)
    stdout, _ = await process.communicate(configuration("/absent"))
    assert process.returncode == 1
    assert json.loads(stdout)["code"] == 4


async def test_environment_too_large(hasty_shim: Path) -> None:
    """CNI's variables are bounded together, and other variables do not count."""
    stdin = configuration("/absent")
    done = await run(hasty_shim, "ADD", stdin, CNI_A="a" * 40_000, CNI_B="b" * 40_000)
    assert done.error["code"] == 4
    done = await run(hasty_shim, "ADD", stdin, CNI_A="a" * 40_000, OTHER="b" * 40_000)
    assert done.error["code"] == 11
