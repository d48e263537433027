"""What ends a plugin's request, and what the runtime is told of it."""

from enum import IntEnum


class Code(IntEnum):
    """The codes of the CNI specification, and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    INVALID_ENVIRONMENT = 4
    INVALID_JSON = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN = 11
    DIFFERS = 100
    """The pod's redirection is not as it should be."""


class CniError(Exception):
    """The request fails; `str` is a line for the person who reads the pod's events."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details
