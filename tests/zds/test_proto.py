"""The wire contract: the generated code is the contract's, and the contract is ztunnel's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from nodeagent.zds import zds_pb2
from tests.eventually import PATIENCE

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("source", "generated"),
    [
        ("proto/zds", "nodeagent/zds"),
        ("proto/cri", "nodeagent/netns"),
        ("tests/runtime/kubelet", "tests/runtime"),
    ],
)
def test_the_generated_code_is_up_to_date(tmp_path: Path, source: str, generated: str) -> None:
    """`make proto` would change nothing."""
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    folder, name = os.path.split(source)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_ROOT / folder}"]
    outputs = [f"--python_out={tmp_path}", f"--mypy_out={tmp_path}", f"{name}.proto"]
    subprocess.run(
        [*command, *outputs], env=tools, check=True, capture_output=True, timeout=PATIENCE
    )
    for file in (f"{name}_pb2.py", f"{name}_pb2.pyi"):
        assert (tmp_path / file).read_text() == (_ROOT / generated / file).read_text()


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (zds_pb2.ZdsHello, {"version": 1}),
        (zds_pb2.WorkloadInfo, {"name": 1, "namespace": 2, "service_account": 3}),
        (zds_pb2.AddWorkload, {"uid": 1, "workload_info": 2}),
        (zds_pb2.KeepWorkload, {"uid": 1}),
        (zds_pb2.DelWorkload, {"uid": 2}),
        (zds_pb2.SnapshotSent, {}),
        (zds_pb2.Ack, {"error": 1}),
        (zds_pb2.WorkloadRequest, {"add": 1, "keep": 5, "del": 2, "snapshot_sent": 3}),
        (zds_pb2.WorkloadResponse, {"ack": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_field_numbers_are_those_on_the_wire(
    message: type[zds_pb2.ZdsHello], fields: dict[str, int]
) -> None:
    """Deployed ztunnels know fields by these numbers only."""
    descriptor: Descriptor = message.DESCRIPTOR
    assert {field.name: field.number for field in descriptor.fields} == fields
    assert descriptor.file.package == "istio.workload.zds"


def test_one_payload_at_a_time() -> None:
    """Requests and responses have exactly one payload, and versions their numbers."""
    for message in (zds_pb2.WorkloadRequest, zds_pb2.WorkloadResponse):
        (payload,) = message.DESCRIPTOR.oneofs
        assert payload.name == "payload"
        assert len(payload.fields) == len(message.DESCRIPTOR.fields)
    assert dict(zds_pb2.Version.items()) == {"NOT_USED": 0, "V1": 1}


def test_numbers_of_old_fields_are_not_used_again() -> None:
    """WorkloadInfo's field 4 and its name were the trust domain, up to Istio 1.22."""
    source = (_ROOT / "proto" / "zds.proto").read_text()
    message = source.partition("message WorkloadInfo {")[2].partition("}")[0]
    assert "reserved 4;" in message
    assert 'reserved "trust_domain";' in message
