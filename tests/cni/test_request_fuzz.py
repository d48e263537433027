"""What may come over the plugin's sockets, fed to its readers: only their own errors come out."""

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from nodeagent.cni import plugin_log, result
from nodeagent.cni.configuration import Configuration
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.istio import IstioRequest
from nodeagent.cni.json_text import DEPTH
from nodeagent.cni.request import Environment, Request
from nodeagent.cni.versions import VERSIONS
from tests.cni.container_runtime import serving
from tests.cni.test_request import either
from tests.eventually import PATIENCE

pytestmark = pytest.mark.virtual_time

ODD_NUMBERS = [
    "0",
    "-0.0",
    "1e999999",
    "-1E+9999",
    "1" * 4300,
    "1" * 5000,
    "0." + "1" * 5000,
    "NaN",
]
ODD_STRINGS = ["", "\ud800", "\udcff", "\0", "\n", "\u202e", "eth0", "::1%\n;", "/", "a" * 300]

texts = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(ODD_STRINGS)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
nests = st.builds(
    lambda depth, opening, closing: opening * depth + "1" + closing * depth,
    st.sampled_from([1, DEPTH - 2, DEPTH - 1, DEPTH, DEPTH + 1, 900, 985, 990, 995]),
    st.sampled_from(["[", '{"a":']),
    st.sampled_from(["]", "}", ""]),
)


def json_of(value: Any) -> str:
    return json.dumps(value)


pieces = values.map(json_of) | nests | st.sampled_from(ODD_NUMBERS)
"""JSON values, and what is almost one."""


@st.composite
def objects(draw: st.DrawFn, *names: str) -> bytes:
    """An object with some of `names`, again and again, and sometimes a byte too many or few."""
    keys = st.sampled_from(names).map(json_of) | texts.map(json_of)
    inside = draw(st.lists(st.tuples(keys, pieces), max_size=3))
    text = "{" + ",".join(f"{key}:{value}" for key, value in inside) + "}"
    data = text.encode(
        draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16"])), "surrogatepass"
    )
    at = draw(st.integers(0, len(data)))
    return draw(st.sampled_from([data, data, data, data[:at], data[:at] + b"\xff" + data[at:]]))


configurations = objects("cniVersion", "name", "prevResult", "cni.dev/valid-attachments")
istios = objects("Netns", "PodName", "PodNamespace", "IPs")


@pytest.mark.fuzz
@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=8), st.binary())
@example([(b"CNI_ARGS", b"a=" * 40_000)], b"{}")
@example([(b"a", b"")] * 300, b"{}")
def test_request(variables: list[tuple[bytes, bytes]], rest: bytes) -> None:
    """Whatever the body is, each part of it is valid or a CNI error."""
    body = b"".join(b"%b=%b\0" % variable for variable in variables) + b"\0" + rest
    for data in (body, rest):
        if either(partial(Request.parse, data), Code.INVALID_ENVIRONMENT):
            environment = Request.parse(data).environment
            for part in ("command", "container_id", "interface", "netns", "netns_if_any", "pod"):
                either(partial(getattr, environment, part), Code.INVALID_ENVIRONMENT)


@pytest.mark.fuzz
@given(st.sampled_from(["CNI_NETNS", "CNI_IFNAME", "CNI_CONTAINERID", "CNI_ARGS"]), texts)
@example("CNI_NETNS", "/\ud800")
@example("CNI_NETNS", "/\udcff")
@example("CNI_NETNS", "/\x1b[31m")
def test_what_is_accepted_can_be_used(name: str, text: str) -> None:
    """A path can be asked for, and what a message quotes can be sent."""
    environment = Environment({name: text})
    if either(lambda: environment.netns, Code.INVALID_ENVIRONMENT):
        os.fsencode(environment.netns)
        environment.netns.encode()


@pytest.mark.fuzz
@given(configurations)
@example(b'{"cniVersion":"1.0.0","name":' + b"[" * 992 + b"]" * 992 + b"}")
@example(b'{"cniVersion":' + b"[" * 992 + b"]" * 992 + b"}")
@example(b'{"cniVersion":"1.0.0","name":"n","prevResult":[]}')
def test_configuration(text: bytes) -> None:
    """Whatever it is, the result that is passed on is JSON, and each address is one."""
    try:
        found = Configuration.parse(text)
        passed = result.passed_on(found)
        addresses = result.addresses(found.previous)
    except CniError as error:
        json.loads(result.failure(error, VERSIONS[-1]))
        str(error).encode()
    else:
        assert json.loads(passed)["cniVersion"] == found.version
        assert all(str(address).isascii() and "%" not in str(address) for address in addresses)


@pytest.mark.fuzz
@given(istios)
@example(b'{"Netns":"/\\ud800","PodName":"a","PodNamespace":"b"}')
@example(b'{"Netns":"/a","PodName":"a","PodNamespace":"b","IPs":[{"Address":{"IP":"::1%\\n"}}]}')
def test_istio_request(body: bytes) -> None:
    """A request, or a CNI error whose text can be sent."""
    try:
        found = IstioRequest.parse(body)
    except CniError as error:
        str(error).encode()
    else:
        os.fsencode(found.netns)
        assert all("%" not in str(address) for address in found.addresses)


@pytest.mark.fuzz
@given(
    st.lists(texts | objects("level", "msg", "time").map(lambda b: b.decode("latin-1")), max_size=2)
)
@example(['{"msg":' + "[" * 985 + "]" * 985 + "}"])
@example(['{"a":' + "[" * 990 + "]" * 990 + "}"])
def test_log(lines: list[str]) -> None:
    """Lines that can be printed, in bounded number and length."""
    found = list(plugin_log.parse(json.dumps(lines).encode()))
    assert len(found) <= len(lines)
    for line in found:
        assert line.message.isprintable()
        assert line.fields.isprintable()


@pytest.mark.fuzz
@given(st.binary() | pieces.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_log_of_any_body(body: bytes) -> None:
    """Lines, or ``ValueError``."""
    try:
        list(plugin_log.parse(body))
    except ValueError as error:
        str(error).encode()


def test_list_of_a_full_node_is_within_the_bounds() -> None:
    """libcni sends the attachments of a collection under two names."""
    attachments = [{"containerID": f"{number:064x}", "ifname": "eth0"} for number in range(2500)]
    names = ("cni.dev/valid-attachments", "cni.dev/attachments")
    config = {"cniVersion": "1.1.0", "name": "n"} | dict.fromkeys(names, attachments)
    found = Configuration.parse(json.dumps(config).encode())
    assert len(found.attachments) == 2500


def test_number_of_variables() -> None:
    """The environment is bounded as in the binary, in bytes and in variables."""
    assert Request.parse(b"CNI_ARGS=" + b"a" * 65_000 + b"\0\0").stdin == b""
    for body in (b"A=" + b"a" * 65_536 + b"\0\0", b"a=\0" * 257 + b"\0"):
        with pytest.raises(CniError, match="larger than"):
            Request.parse(body)


BODIES = {
    "nothing": b"",
    "nested configuration": b"CNI_COMMAND=ADD\0\0" + b'{"cniVersion":' + b"[" * 992 + b"]" * 992,
    "surrogate": b"CNI_COMMAND=CHECK\0CNI_NETNS=/\xff\0CNI_IFNAME=a\0CNI_CONTAINERID=c\0"
    b"CNI_ARGS=K8S_POD_NAME=a;K8S_POD_NAMESPACE=b\0\0"
    b'{"cniVersion":"1.0.0","name":"n"}',
    "result that is none": b"CNI_COMMAND=ADD\0CNI_NETNS=/1\0CNI_IFNAME=a\0CNI_CONTAINERID=c\0\0"
    b'{"cniVersion":"1.0.0","name":"n","prevResult":[]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_server_answers_with_a_cni_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """Over the socket, too: an error of CNI's, and no fault of ours in the log."""
    with structlog.testing.capture_logs() as logged:
        async with serving(tmp_path) as runtime, asyncio.timeout(PATIENCE):
            reply = await runtime.post("/cni", body)
            assert reply.code in set(Code)
    assert [line["event"] for line in logged] == ["plugin request failed"]
    assert caplog.text == "", "nor one of aiohttp's"


@pytest.mark.parametrize(
    ("path", "sock", "body"),
    [
        ("/cmdadd", "pluginevent.sock", b'{"Netns":"/\\ud800","PodName":"a","PodNamespace":"b"}'),
        ("/cmdadd", "pluginevent.sock", b'{"Netns":' + b"[" * 992 + b"]" * 992 + b"}"),
        ("/log", "log.sock", b"[" * 992 + b"]" * 992),
        ("/log", "log.sock", b'["", 1]'),
    ],
)
async def test_server_refuses_what_istios_plugin_never_sends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, sock: str, body: bytes
) -> None:
    """The same for the two requests of Istio's plugin: a text, and no fault in the log."""
    async with serving(tmp_path) as runtime, asyncio.timeout(PATIENCE):
        reply = await runtime.post(path, body, sock=sock)
        assert not reply.success
    assert caplog.text == "", "aiohttp has had no exception of ours"
