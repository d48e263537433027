"""A pod's UID is read from every layout of cgroups, and from nothing else."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netns.cgroup import pod_uid, pods_above

UID = "2c48913c-b29f-11e7-9350-020968147796"
OTHER = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
UNDERSCORED = UID.replace("-", "_")
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
HASH = "d3c0f5c5cc8e3d0b4f2cf55d3a1f4a5f"


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods/burstable/pod{UID}/{ID}",
        f"/kubepods/pod{UID}/{ID}",
        f"/../../pod{UID}/{ID}",
        f"/../pod{UID}/{ID}",
        f"/kubepods/burstable/pod{UID}/crio-{ID}",
        f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice",
        f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope/container",
        f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/docker-{ID}.scope",
        f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/x",
        f"/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}",
        f"/docker/{ID}/kubelet/kubepods/besteffort/pod{UID}/{ID}",
        f"/system.slice/containerd.service/kubepods-pod{UNDERSCORED}.slice:cri-containerd:{ID}",
        f"0::/kubepods/pod{UID}",
        f"9:name=systemd:/\n8:pids:/kubepods/pod{UID}/{ID}\n0::/\n",
    ],
)
def test_layouts(path: str) -> None:
    """L21: cgroupfs and systemd, v1 and v2, containerd, CRI-O and Docker, whole or relative."""
    assert pod_uid(path) == UID


def test_static_pod() -> None:
    """A static pod's cgroup has the hash of its manifest in place of a UID."""
    assert pod_uid(f"/kubepods/burstable/pod{HASH}/{ID}") == HASH
    assert pod_uid(f"/kubepods-burstable-pod{HASH}.slice/crio-{ID}.scope") == HASH


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods/burstable/pod{UID}/pod{OTHER}",
        f"/kubepods/burstable/pod{UID}/{ID}/kubepods/burstable/pod{OTHER}/{ID}",
        f"/../../pod{UID}/{ID}/../../pod{OTHER}/x",
        f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope/pod{OTHER}",
        f"/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}/pod{OTHER}",
        f"2:memory:/kubepods/pod{UID}/pod{OTHER}\n1:pids:/kubepods/pod{UID}/{ID}\n0::/\n",
    ],
)
def test_names_that_a_pod_gives(path: str) -> None:
    """L39: what is below a pod's cgroup is the pod's, whatever the pod has called it."""
    assert pod_uid(path) == UID


def test_hierarchies_that_differ() -> None:
    """L39: a process that is in one pod here and in another there is no pod's."""
    assert pod_uid(f"2:memory:/kubepods/pod{UID}/{ID}\n1:misc:/kubepods/pod{OTHER}\n") is None


def test_node_in_a_pod() -> None:
    """A node that runs in a pod of another cluster has pods of its own, below that one."""
    node = f"0::/kubepods/pod{UID}/{ID}/init.scope\n"
    path = f"0::/kubepods/pod{UID}/{ID}/kubelet/kubepods/pod{OTHER}/{ID}/pod{HASH}\n"
    assert pod_uid(path, pods_above(node)) == OTHER
    assert pod_uid(node, pods_above(node)) is None
    assert pods_above("0::/init.scope\n") == set()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/init.scope",
        "/user.slice/user-1000.slice/session-1.scope",
        f"/machine.slice/libpod-{ID}.scope",
        f"/docker/{ID}",
        f"/system.slice/tripod{UID}",
        f"/kubepods/pod{UID}0/{ID}",
        f"/kubepods/pod{UID[:-1]}/{ID}",
        f"/kubepods/pod{ID}",
        f"/kubepods/pod/{UID}",
        "/kubepods/pod2c48913c\n-b29f-11e7-9350-020968147796",
    ],
)
def test_what_is_no_pod(path: str) -> None:
    """Anything else belongs to no pod, and crashes nothing."""
    assert pod_uid(path) is None


@pytest.mark.fuzz
@given(st.text(), st.text("0123456789abcdef-_/pod\n:") | st.just(f"/pod{OTHER}"))
def test_any_text(text: str, below: str) -> None:
    """L39: whatever stands below a pod's cgroup, the process is the pod's or, with several
    hierarchies that differ, no pod's. What comes out is a UID.
    """
    found = pod_uid(text + below)
    assert found is None or UUID(found)
    assert pod_uid(f"/kubepods/pod{UID}/" + below.replace("\n", "")) == UID
    assert pod_uid(f"0::/kubepods/pod{UID}/{below}") in {UID, None}


@given(st.uuids(), st.sampled_from("-_.:~+"), st.sampled_from(["/", "/a-", "/kubepods-burstable-"]))
def test_any_dash(uid: UUID, dash: str, before: str) -> None:
    """In a UID taken from a path every punctuation mark stands for a dash."""
    assert pod_uid(f"{before}pod{str(uid).replace('-', dash)}.slice/x") == str(uid)
