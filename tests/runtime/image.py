"""The one image of the tests' pods: a single static program, as an OCI archive."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

NAME = "tests.invalid/pod:1"
"""No registry has it: it is imported before the first pod."""
PROGRAM = "/pod"

_SOURCE = Path(__file__).with_name("pod_program.c")
_COMPILE = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-static", "-Os")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MEDIA = "application/vnd.oci.image."


def build(directory: Path) -> Path:
    """Compile the program and pack it. Returns the archive, for ``ctr images import``."""
    program = directory / "pod"
    subprocess.run([*_COMPILE, "-o", program, _SOURCE], check=True)
    archive = directory / "pod.tar"
    archive.write_bytes(_archive(program.read_bytes()))
    return archive


def _archive(program: bytes) -> bytes:
    layer = _tar({PROGRAM.removeprefix("/"): program})
    config = _json(
        architecture=_ARCHITECTURES[platform.machine()],
        os="linux",
        config={"Entrypoint": [PROGRAM]},
        rootfs={"type": "layers", "diff_ids": [_digest(layer)]},
    )
    manifest = _json(
        schemaVersion=2,
        mediaType=_MEDIA + "manifest.v1+json",
        config=_descriptor("config.v1+json", config),
        layers=[_descriptor("layer.v1.tar", layer)],
    )
    named = {
        **_descriptor("manifest.v1+json", manifest),
        "annotations": {"io.containerd.image.name": NAME},
    }
    blobs = {f"blobs/sha256/{_hash(blob)}": blob for blob in (layer, config, manifest)}
    return _tar(
        {
            "oci-layout": _json(imageLayoutVersion="1.0.0"),
            "index.json": _json(schemaVersion=2, manifests=[named]),
            **blobs,
        }
    )


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": _MEDIA + kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{_hash(blob)}"


def _hash(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _json(**values: object) -> bytes:
    return json.dumps(values).encode()
