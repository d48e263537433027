"""What the stub can be told on its command line."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, cast

from ztunnel_stub.address import Endpoint
from ztunnel_stub.faults import HELP, Fault

LogFormat = Literal["auto", "console", "json"]

DESCRIPTION = """\
A test ztunnel. It speaks ZDS with the node agent, opens ztunnel's listeners in every pod
that it is handed, and passes traffic on as plain text: 15001 outbound, 15006 inbound from
the client's own address, 15053 DNS. Port 15008 is accepted and closed: no HBONE.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked. An address is ``ADDRESS:PORT``, ``unix:PATH`` or empty: off."""

    inpod_uds: str = "/var/run/ztunnel/ztunnel.sock"
    dns_resolver: Endpoint | None = None
    admin_address: str = "127.0.0.1:15000"
    readiness_address: str = "0.0.0.0:15021"
    record: str | None = None
    faults: tuple[Fault, ...] = ()
    retry_interval: float = 5.0
    """Seconds until a listener that did not bind is tried again."""
    drain_timeout: float = 5.0
    """Seconds that open connections have to end by themselves."""
    log_level: str = "info"
    log_format: LogFormat = "auto"


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """From the command line; a wrong value ends the process with one line and status 2."""
    values = _parser().parse_args(arguments)
    return Settings(
        inpod_uds=values.inpod_uds,
        dns_resolver=values.dns_resolver,
        admin_address=values.admin_address,
        readiness_address=values.readiness_address,
        record=values.record,
        faults=tuple(values.fault),
        retry_interval=values.retry_interval,
        drain_timeout=values.drain_timeout,
        log_level=values.log_level,
        log_format=cast("LogFormat", values.log_format),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = _Parser(
        "ztunnel-stub",
        description=DESCRIPTION,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--inpod-uds",
        metavar="PATH",
        default=os.environ.get("INPOD_UDS", default.inpod_uds),
        help="the agent's socket (variable INPOD_UDS; %(default)s)",
    )
    add(
        "--dns-resolver",
        metavar="ADDRESS:PORT",
        type=_endpoint,
        help="where DNS queries go, seen from inside the pods (without: SERVFAIL)",
    )
    add(
        "--admin-address",
        metavar="ADDRESS",
        type=_address,
        default=default.admin_address,
        help="/config_dump; ADDRESS:PORT, unix:PATH, or empty for none (%(default)s)",
    )
    add(
        "--readiness-address",
        metavar="ADDRESS",
        type=_address,
        default=default.readiness_address,
        help="/healthz/ready; like --admin-address (%(default)s)",
    )
    add("--record", metavar="FILE", help="append every ZDS message to FILE, one JSON line each")
    add(
        "--fault",
        metavar="NAME[:ARG][:COUNT]",
        type=_fault,
        action="append",
        default=[],
        help="misbehave, see below; can be repeated",
    )
    add(
        "--retry-interval",
        metavar="SECONDS",
        type=_seconds,
        default=default.retry_interval,
        help="until a listener that did not bind is tried again (%(default)s)",
    )
    add(
        "--drain-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=default.drain_timeout,
        help="that open connections have to end by themselves (%(default)s)",
    )
    add("--log-level", choices=["debug", "info", "warning", "error"], default=default.log_level)
    add("--log-format", choices=["auto", "console", "json"], default=default.log_format)
    return parser


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT") from error


def _address(text: str) -> str:
    if text and not text.startswith("unix:/"):
        _endpoint(text)
    return text


def _fault(text: str) -> Fault:
    try:
        return Fault.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no fault: {error}; see --help") from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return seconds
