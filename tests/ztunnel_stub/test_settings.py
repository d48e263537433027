"""The command line, and the addresses in it."""

import socket

import pytest

from ztunnel_stub.address import Endpoint
from ztunnel_stub.faults import Fault, FaultKind
from ztunnel_stub.settings import Settings, parse


def test_nothing_said_is_ztunnels_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every default has its place in `Settings`, and only there."""
    monkeypatch.delenv("INPOD_UDS", raising=False)
    assert parse([]) == Settings()


def test_every_option_arrives() -> None:
    """What is said on the command line is what the stub runs with."""
    line = (
        "--inpod-uds /s --dns-resolver [fd00::1]:53 --admin-address= --readiness-address unix:/r"
        " --record /f --fault garbage --fault late-answer:1:2 --retry-interval 0.5"
        " --drain-timeout 0 --log-level debug --log-format console"
    )
    chosen = parse(line.split())
    assert chosen == Settings(
        inpod_uds="/s",
        dns_resolver=Endpoint("fd00::1", 53),
        admin_address="",
        readiness_address="unix:/r",
        record="/f",
        faults=(Fault(FaultKind.GARBAGE), Fault(FaultKind.LATE_ANSWER, 1, 2)),
        retry_interval=0.5,
        drain_timeout=0,
        log_level="debug",
        log_format="console",
    )


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--dns-resolver", "dns.example:53", "ADDRESS:PORT"),
        ("--dns-resolver", "10.0.0.1", "ADDRESS:PORT"),
        ("--dns-resolver", "10.0.0.1:65536", "ADDRESS:PORT"),
        ("--admin-address", "here", "ADDRESS:PORT"),
        ("--fault", "rubbish", "see --help"),
        ("--retry-interval", "soon", "seconds"),
        ("--drain-timeout", "-1", "seconds"),
    ],
)
def test_a_wrong_value_is_named(
    option: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with setting, value and what is allowed; status 2."""
    with pytest.raises(SystemExit) as end:
        parse([f"{option}={value}"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option in line
    assert repr(value) in line
    assert complaint in line


def test_the_help_names_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """--help is the faults' documentation."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {kind}" in text for kind in FaultKind)


@pytest.mark.parametrize(
    ("sockaddr", "endpoint", "text"),
    [
        (("10.0.0.1", 80), Endpoint("10.0.0.1", 80), "10.0.0.1:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), Endpoint("10.0.0.1", 80), "10.0.0.1:80"),
        (("fe80::1", 80, 0, 3), Endpoint("fe80::1", 80, 3), "[fe80::1]:80"),
    ],
)
def test_an_address_is_shown_in_its_own_family(
    sockaddr: tuple[str, int], endpoint: Endpoint, text: str
) -> None:
    """A dual-stack socket's mapped IPv4 address is an IPv4 address; a scope is kept."""
    found = Endpoint.of_sockaddr(sockaddr)
    assert found == endpoint
    assert str(found) == text
    assert (found.family == socket.AF_INET6) == text.startswith("[")
