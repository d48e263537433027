"""Requests as the binary forwards them: the pure part."""

import json
from collections.abc import Callable
from functools import partial
from ipaddress import ip_interface
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.cni import result
from nodeagent.cni.configuration import Configuration
from nodeagent.cni.errors import CniError, Code
from nodeagent.cni.request import Command, Environment, PodName, Request
from nodeagent.cni.versions import NEWEST, VERSIONS

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web.1;K8S_POD_UID=a-b=c",
}
PARTS = {
    "CNI_COMMAND": "command",
    "CNI_CONTAINERID": "container_id",
    "CNI_NETNS": "netns",
    "CNI_IFNAME": "interface",
    "CNI_ARGS": "pod",
}
CONFIG = {"cniVersion": "1.0.0", "name": "net"}

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def code_of(text: bytes | dict[str, Any]) -> Code:
    with pytest.raises(CniError) as caught:
        Configuration.parse(text if isinstance(text, bytes) else json.dumps(text).encode())
    return caught.value.code


def test_environment() -> None:
    """Every variable is found where the binary puts it, and standard input behind them."""
    variables = {**ENVIRONMENT, "CNI_ARGS": ENVIRONMENT["CNI_ARGS"].replace("a-b=c", "a-b")}
    text = "".join(f"{name}={value}\0" for name, value in variables.items())
    request = Request.parse(text.encode() + b"\0{\0}")
    environment = request.environment
    assert (environment.command, request.stdin) == (Command.ADD, b"{\0}")
    assert (environment.container_id, environment.netns) == ("c1", "/run/netns/1")
    assert environment.interface == "eth0"
    assert environment.pod == PodName(namespace="shop", name="web.1", uid="a-b")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("CNI_COMMAND", ["add", ""]),
        ("CNI_CONTAINERID", ["../c", "", "c" * 300]),
        ("CNI_NETNS", ["run/netns", "", "/" * 5000]),
        ("CNI_IFNAME", ["a/b", "..", "a" * 16, ""]),
        ("CNI_ARGS", ["x", ENVIRONMENT["CNI_ARGS"], "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=b"]),
        ("CNI_ARGS", ["K8S_POD_NAME=../a;K8S_POD_NAMESPACE=b"]),
        ("CNI_ARGS", ["K8S_POD_NAME=a;K8S_POD_NAMESPACE=/b"]),
    ],
)
def test_variables_that_are_refused(name: str, values: list[str]) -> None:
    """Missing and malformed ones are code 4, and the message names the one at fault."""
    for value in values:
        environment = Environment({name: value})
        with pytest.raises(CniError, match=rf"{name}|the pod's") as caught:
            getattr(environment, PARTS[name])
        assert caught.value.code is Code.INVALID_ENVIRONMENT


def either(parse: Callable[[], object], *codes: Code) -> bool:
    """Whether `parse` succeeds; else it raises a CNI error with one of `codes`."""
    try:
        parse()
    except CniError as error:
        if error.code not in codes:
            raise
        return False
    return True


@given(st.binary())
def test_any_body(body: bytes) -> None:
    """Whatever the body is, it is a request or a CNI error."""
    if either(lambda: Request.parse(body), Code.INVALID_ENVIRONMENT):
        assert body.endswith(b"\0" + Request.parse(body).stdin)


@given(st.dictionaries(st.sampled_from([*ENVIRONMENT, "CNI_PATH"]), st.text()))
def test_any_environment(variables: dict[str, str]) -> None:
    """Whatever the variables are, each is valid or a CNI error."""
    for part in (*PARTS.values(), "netns_if_any"):
        either(partial(getattr, Environment(variables), part), Code.INVALID_ENVIRONMENT)


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_any_configuration(text: bytes) -> None:
    """Whatever standard input is, it is a configuration or a CNI error."""
    codes = (Code.INCOMPATIBLE_VERSION, Code.INVALID_JSON, Code.INVALID_CONFIGURATION)
    either(lambda: Configuration.parse(text), *codes)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{} {}", b"{,}", b'{"a":1,}', b'{"a" 1}', b'{"a":}', b"{1:2}", b"\xff",
     b'{"a":NaN}', b"\xef\xbb\xbf{}", b'{"a":' + b"[" * 100_000, b'{"a":' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_object(text: bytes) -> None:
    """Broken JSON is code 6, however deep or long it is."""
    assert code_of(text) is Code.INVALID_JSON


def test_versions() -> None:
    """0.3.0 to 1.1.0 are spoken; others, and none, are code 1."""
    for version in VERSIONS:
        assert Configuration.parse(json.dumps({**CONFIG, "cniVersion": version}).encode())
    for other in ("0.2.0", "2.0.0", "", 1, None, ["1.0.0"]):
        assert code_of({**CONFIG, "cniVersion": other}) is Code.INCOMPATIBLE_VERSION
    assert code_of({"name": "net"}) is Code.INCOMPATIBLE_VERSION


@pytest.mark.parametrize("name", ["", "-net", "a b", 1, None])
def test_names_of_networks(name: object) -> None:
    """A configuration without a valid name is code 7."""
    assert code_of({**CONFIG, "name": name}) is Code.INVALID_CONFIGURATION


def passed_on(previous: str | None, version: str = "1.0.0") -> str:
    config = f'{{"cniVersion": "{version}", "name": "net"'
    config += "}" if previous is None else f', "prevResult": {previous}}}'
    return result.passed_on(Configuration.parse(config.encode()))


@settings(max_examples=50)
@given(st.dictionaries(st.text(), values), st.sampled_from(VERSIONS))
def test_result_is_passed_on(value: dict[str, Any], version: str) -> None:
    """What came comes out, in the version that the configuration names."""
    value.pop("cniVersion", None)
    text = json.dumps({**value, "cniVersion": version}, indent=1)
    assert passed_on(text, version) == text
    assert json.loads(passed_on(json.dumps(value), version)) == {**value, "cniVersion": version}
    older = json.dumps({**value, "cniVersion": "0.2.0"})
    assert json.loads(passed_on(older, version)) == {**value, "cniVersion": version}


@pytest.mark.parametrize("previous", [None, "null"])
def test_result_of_the_first_plugin(previous: str | None) -> None:
    """Without a previous result there is an empty one."""
    assert json.loads(passed_on(previous)) == {"cniVersion": "1.0.0"}


def addresses(previous: str) -> tuple[str, ...]:
    text = f'{{"cniVersion": "1.0.0", "name": "net", "prevResult": {previous}}}'
    previous_result = Configuration.parse(text.encode()).previous
    return tuple(map(str, result.addresses(previous_result)))


@given(st.lists(st.ip_addresses(), max_size=5))
def test_addresses(given_ones: list[Any]) -> None:
    """Every address of the previous result is found, without its prefix length."""
    ips = [{"address": str(ip_interface(address))} for address in given_ones]
    assert addresses(json.dumps({"ips": ips})) == tuple(map(str, given_ones))


@pytest.mark.parametrize(
    "previous",
    ["[]", '"x"', '{"ips": {}}', '{"ips": ["10.0.0.1/24"]}', '{"ips": [{}]}', '{"ips": "x"}',
     '{"ips": [{"address": "10.0.0.1/99"}]}', '{"ips": [{"address": 1}]}',
     json.dumps({"ips": [{"address": "10.0.0.1/24"}] * 1000})],
)  # fmt: skip
def test_addresses_that_are_none(previous: str) -> None:
    """A previous result that is not understood is code 7."""
    with pytest.raises(CniError) as caught:
        addresses(previous)
    assert caught.value.code is Code.INVALID_CONFIGURATION


@given(st.text(), st.text(), st.sampled_from(VERSIONS))
def test_errors_are_json(message: str, details: str, version: str) -> None:
    """Whatever a message holds, the runtime can read it."""
    text = result.failure(CniError(Code.TRY_AGAIN, message, details), version)
    expected = {"cniVersion": version, "code": 11, "msg": message}
    assert json.loads(text) == ({**expected, "details": details} if details else expected)
    assert text.isascii()


def test_newest_version_is_answered() -> None:
    """VERSION answers in the newest one, with all."""
    answer = json.loads(result.versions())
    assert (answer["cniVersion"], tuple(answer["supportedVersions"])) == (NEWEST, VERSIONS)
