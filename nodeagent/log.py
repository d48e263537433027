"""Where the log goes, and what a line looks like.

Every module logs through ``structlog.get_logger()``. What libraries such as asyncio and
aiohttp log is formatted likewise. All of it goes to standard error.
"""

import logging
import sys
from typing import Literal

from nodeagent.lean_imports import absent

# Where rich is installed, structlog loads it: 3 MiB, for tracebacks that are printed plainly here.
with absent("rich"):
    import structlog
    from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "console", "json"]


def configure(level: str, fmt: Format = "auto") -> None:
    """Send everything from `level` ("debug", "info", …) on to standard error.

    ``auto`` is lines for people where standard error is a terminal, and one JSON
    object a line otherwise. Times are UTC. Calling it again replaces the earlier
    configuration. Raises ``KeyError`` for an unknown level.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    colors = sys.stderr.isatty()
    console = fmt == "console" or (fmt == "auto" and colors)
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *(_for_people(colors=colors) if console else _for_machines()),
            ],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)


def printable(text: str) -> str:
    r"""`text` with everything that is not printable spelled out (``\x1b``, ``\u202e``, …).

    Pods' names, annotations and the errors about them come from tenants, and a
    terminal obeys what it is sent.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _for_people(*, colors: bool) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )
    return [_only_printable, renderer]


def _for_machines() -> list[Processor]:
    return [structlog.processors.JSONRenderer(default=str)]


def _only_printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {
        # Only a traceback may have several lines. They are indented, so that nothing in them
        # looks like a line of the log.
        key: "\n".join(f"    {printable(line)}" for line in str(value).split("\n"))
        if key == "exception"
        else printable(str(value))
        for key, value in event.items()
    }
