"""A module's tests are where its path says, and a file of tests says what it is about.

The tests of `nodeagent/mesh/pod.py` are in `tests/mesh`, in a file whose name begins with
`test_pod`; for a folder of modules, such as `nodeagent/commands/check`, files that begin with
`test_check` will do. A file may test several modules, and be named after what they do together:
`_ALSO` has them. What is left is in `_ELSEWHERE` with the reason.
"""

import re
from pathlib import PurePosixPath

from tests.docs.texts import ROOT

_WHOLE = {
    "tests/agent": "whole agents as processes, and so every module of `nodeagent/agent`",
    "tests/deploy": "the manifests of `deploy`",
    "tests/docs": "the pages of `docs`",
    "tests/node": "whole nodes: API server, container runtime, agent, stub and traffic",
    "tests/runtime": "the container runtime that other tests use",
    "tests/tools": "the demo and the bench",
}
"""Folders with tests that are about no single module, and what they are about."""

_ALSO = {
    "tests/test_imports.py": "lean_imports",
    "tests/admin/test_server.py": "client",
    "tests/cluster/test_api.py": "access retried",
    "tests/cluster/test_cluster_pods.py": "source",
    "tests/cluster/test_cluster_reporter.py": "events outbox",
    "tests/cluster/test_listwatch.py": "known",
    "tests/cluster/test_proxy.py": "",  # the faults that other tests make
    "tests/cni/test_chain_live.py": "plugin release",
    "tests/cni/test_request.py": "configuration errors result versions",
    "tests/cni/test_request_fuzz.py": "istio plugin_log",
    "tests/cni/test_server.py": "admission let_through plugin pod_finder waiting",
    "tests/cni/test_server_end.py": "attachments release",
    "tests/cni/test_server_names.py": "pod_finder",
    "tests/cni/install/test_conflist.py": "directory plan",
    "tests/cni/install/test_installer.py": "plan repair",
    "tests/cni/install/test_installer_faults.py": "binary",
    "tests/cni/install/test_networks_live.py": "plan",
    "tests/mesh/test_eligibility.py": "pod",
    "tests/mesh/test_enrollment.py": "dependencies errors",
    "tests/mesh/test_histories.py": "enrollment worker",
    "tests/mesh/test_workload.py": "progress",
    "tests/metrics/test_definitions.py": "reference",
    "tests/netfilter/test_iptables.py": "rule",
    "tests/netfilter/test_nft_batch.py": "layout nfnetlink",
    "tests/netns/test_finding_live.py": "verify",
    "tests/netns/test_netns.py": "addresses annotated verify",
    "tests/probes/test_histories.py": "host_probes nft_table",
    "tests/probes/test_host_probes.py": "backend rules",
    "tests/probes/test_iptables_backend.py": "iptables_rules",
    "tests/probes/test_layout.py": "nft_backend nft_rules nft_table",
    "tests/probes/test_packets.py": "host_probes nft_rules",
    "tests/probes/test_packets_iptables.py": "iptables_backend iptables_rules",
    "tests/redirect/test_dns_capture.py": "nft_rules rules",
    "tests/redirect/test_hostile.py": "defaults nft_backend redirector",
    "tests/redirect/test_iptables_packets.py": "iptables_rules",
    "tests/redirect/test_packets.py": "nft_rules rules",
    "tests/redirect/test_routing_histories.py": "reply_path routes",
    "tests/redirect/test_vm_packets.py": "nft_rules rules",
    "tests/zds/test_faults.py": "connection server",
    "tests/zds/test_fuzz.py": "connection",
    "tests/zds/test_histories.py": "desired session ztunnels",
    "tests/zds/test_proto.py": "codec",
    "tests/zds/test_sessions.py": "session ztunnels",
    "tests/zds/test_snapshots.py": "desired session",
    "tests/ztunnel_stub/test_connection.py": "backoff channel client codec state workloads",
    "tests/ztunnel_stub/test_process.py": "admin cli record stub",
    "tests/ztunnel_stub/test_settings.py": "address",
    "tests/ztunnel_stub/test_traffic.py": "relay workload",
}
"""What a file tests besides the module whose name it has, or instead: modules of its room."""

_ELSEWHERE = {
    "nodeagent/observer.py": "its methods do nothing: tests/metrics/test_counting.py",
    "nodeagent/validators.py": "every setting is checked by one: tests/test_config.py",
    "nodeagent/cluster/log_reporter.py": "it only logs: tests/agent/test_life.py reads that",
    "nodeagent/commands/errors.py": "tests/test_cli.py",
    "nodeagent/commands/install_cni.py": "whole agents: tests/deploy/test_istio_chart.py",
    "nodeagent/commands/rules.py": "tests/test_cli.py",
    "nodeagent/commands/run.py": "tests/test_cli.py, and all whole agents",
    "nodeagent/commands/uninstall.py": "tests/agent/test_takeover.py, tests/node/test_uninstall.py",
    "nodeagent/linux/directory_watch.py": "tests/cluster/test_manifest_folder.py",
    "nodeagent/linux/fd_limit.py": "tests/agent/test_crowds.py",
    "nodeagent/linux/policy_routing.py": "tests/redirect/test_routes.py, and"
    " tests/probes/test_branch_interfaces.py",
    "nodeagent/linux/syscalls.py": "each function is one call: tests/netns/test_threads.py",
    "nodeagent/netns/holders.py": "for the uninstall: tests/node/test_uninstall.py",
}
"""Modules that nothing tests in the place of their path: why, or which tests do so instead."""


def _modules() -> list[str]:
    """What somebody has written of the two packages, as paths from the repository's top."""
    found = (
        str(path.relative_to(ROOT))
        for package in ("nodeagent", "ztunnel_stub")
        for path in (ROOT / package).rglob("*.py")
    )
    return sorted(name for name in found if not name.endswith(("__.py", "_pb2.py")))


MODULES = _modules()
TESTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))


def _folder(module: str) -> str:
    """Where the tests of a module have to be."""
    return str(PurePosixPath("tests", module.removeprefix("nodeagent/")).parent)


def _named_after(test: str) -> list[str]:
    """The modules whose name the file has, or which are in the folder whose name it has."""
    folder, stem = str(PurePosixPath(test).parent), PurePosixPath(test).stem
    names: dict[str, list[str]] = {}
    for module in MODULES:
        if _folder(module) == folder:
            names.setdefault(PurePosixPath(module).stem, []).append(module)
        elif str(PurePosixPath(_folder(module)).parent) == folder:
            names.setdefault(PurePosixPath(_folder(module)).name, []).append(module)
    fitting = [name for name in names if f"{stem}_".startswith(f"test_{name}_")]
    # `test_iptables_save.py` is about `iptables_save`, though there is `iptables`, too.
    return names[max(fitting, key=len)] if fitting else []


def _also(test: str) -> list[str]:
    folder = str(PurePosixPath(test).parent)
    names = _ALSO.get(test, "").split()
    return [
        module
        for module in MODULES
        if _folder(module) == folder and PurePosixPath(module).stem in names
    ]


TESTED_BY = {test: [*_named_after(test), *_also(test)] for test in TESTS}


def test_modules_are_found() -> None:
    assert "nodeagent/mesh/eligibility.py" in TESTED_BY["tests/mesh/test_eligibility.py"]
    assert "nodeagent/commands/check/node.py" in TESTED_BY["tests/commands/test_check.py"]
    assert len(MODULES) > 100


def test_each_module_has_tests() -> None:
    tested = {module for modules in TESTED_BY.values() for module in modules}
    untested = [
        module
        for module in MODULES
        if module not in tested and module not in _ELSEWHERE and _folder(module) not in _WHOLE
    ]
    assert untested == []


def test_each_file_is_about_a_module() -> None:
    unknown = [
        test
        for test, modules in TESTED_BY.items()
        if not modules and test not in _ALSO and str(PurePosixPath(test).parent) not in _WHOLE
    ]
    assert unknown == []


def test_the_lists_are_true() -> None:
    """Nothing in them has gone or moved, and no module is said to have no tests that has some."""
    wrong = [test for test in _ALSO if test not in TESTS]
    wrong += [
        f"{test}: {name}"
        for test, names in _ALSO.items()
        for name in names.split()
        if name not in {PurePosixPath(module).stem for module in _also(test)}
    ]
    tested = {module for modules in TESTED_BY.values() for module in modules}
    wrong += [module for module in _ELSEWHERE if module not in MODULES or module in tested]
    wrong += [
        test
        for reason in _ELSEWHERE.values()
        for test in re.findall(r"tests/[\w/]+\.py", reason)
        if test not in TESTS
    ]
    assert wrong == []
