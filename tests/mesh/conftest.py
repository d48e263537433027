"""The heart's tests need nothing of the machine, its clock least of all: time is virtual."""

from tests.virtual_time import VirtualLoop


def pytest_asyncio_loop_factories() -> dict[str, type[VirtualLoop]]:
    return {"virtual": VirtualLoop}
