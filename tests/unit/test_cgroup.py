"""A pod's UID is read from every layout of cgroups, and from nothing else."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.netns.cgroup import pod_uids

UID = "2c48913c-b29f-11e7-9350-020968147796"
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
    assert pod_uids(path) == {UID}


def test_static_pod() -> None:
    """A static pod's cgroup has the hash of its manifest in place of a UID."""
    assert pod_uids(f"/kubepods/burstable/pod{HASH}/{ID}") == {HASH}
    assert pod_uids(f"/kubepods-burstable-pod{HASH}.slice/crio-{ID}.scope") == {HASH}


def test_nested_nodes() -> None:
    """A process in a node that is itself a pod belongs to both pods."""
    other = "72f7f152-440c-66ac-9084-e0fc1d8a910c"
    path = f"/kubepods/pod{UID}/{ID}/kubelet/kubepods/pod{other}/{ID}"
    assert pod_uids(path) == {UID, other}


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
    assert pod_uids(path) == set()


@given(st.text("0123456789abcdef-_/pod"), st.text())
def test_any_text(before: str, after: str) -> None:
    """Whatever cgroups are around it are called, a pod's is seen; what comes out is a UID."""
    found = pod_uids(f"{before}/pod{UID}/{after}")
    assert UID in found
    assert all(UUID(uid) for uid in found)


@given(st.uuids(), st.sampled_from("-_.:~+"), st.sampled_from(["/", "/a-", "/kubepods-burstable-"]))
def test_any_dash(uid: UUID, dash: str, before: str) -> None:
    """In a UID taken from a path every punctuation mark stands for a dash."""
    assert pod_uids(f"{before}pod{str(uid).replace('-', dash)}.slice/x") == {str(uid)}
