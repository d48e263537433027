"""Says at the head of a run which tests are left out, and why."""

from tests.cluster import binaries
from tests.cni import chains, libcni
from tests.runtime import containerd


def pytest_report_header() -> list[str]:
    no_cluster, no_runtime = binaries.missing(), containerd.missing()
    tiers = {
        "tests/cluster": no_cluster,
        "tests/runtime": no_runtime,
        "tests/node": no_cluster or no_runtime,
    }
    lines = [f"{tier} is left out: {reason}" for tier, reason in tiers.items() if reason]
    return [*lines, *filter(None, (libcni.missing(), chains.missing()))]
