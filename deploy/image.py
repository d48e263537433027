"""What `deploy/make-image` does in Python: an OCI image from layers, and its SBOM.

`deploy/Containerfile` is read for what both images have: Debian's packages, the environment
and the command. An image is written as the OCI's image layout in a tar file, which
``ctr images import``, ``skopeo copy oci-archive:`` and ``podman load`` take.

usage: python -m deploy.image packages
       python -m deploy.image sbom ROOT VERSION FILE
       python -m deploy.image pack FILE NAME ARCHITECTURE LAYER...
"""

import gzip
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

CONTAINERFILE = Path(__file__).with_name("Containerfile")
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What PATH is in the Containerfile's base image, but for the directories of Python."""
_MEDIA = "application/vnd.oci.image."


def packages(containerfile: str) -> list[str]:
    """Debian's packages that the last stage installs."""
    [command] = re.findall(r"apt-get install (.*?)(?:&&|$)", _last_stage(containerfile)["RUN"])
    return [word for word in command.split() if not word.startswith("-")]


def container_config(containerfile: str) -> dict[str, Any]:
    """The environment and the command of the last stage, as an image's configuration has them."""
    stage = _last_stage(containerfile)
    environment = [text.replace("$PATH", _BASE_PATH) for text in stage["ENV"].split()]
    return {"Env": environment, "Cmd": json.loads(stage["CMD"])}


def _last_stage(containerfile: str) -> dict[str, str]:
    text = re.sub(r"^#.*\n", "", containerfile, flags=re.MULTILINE).replace("\\\n", " ")
    stage = re.split(r"^FROM ", text, flags=re.MULTILINE)[-1]
    return dict(re.findall(r"^(ENV|CMD|RUN) +(.*)$", stage, flags=re.MULTILINE))


def archive(
    name: str, architecture: str, config: Mapping[str, Any], layers: Sequence[bytes], created: int
) -> bytes:
    """An OCI archive. `layers` are tars in gzip, the lowest first; `created` is a Unix time.

    The same arguments give the same bytes.
    """
    time = datetime.fromtimestamp(created, UTC).isoformat()
    settings = _json(
        created=time,
        architecture=architecture,
        os="linux",
        config=config,
        rootfs={
            "type": "layers",
            "diff_ids": [_digest(gzip.decompress(layer)) for layer in layers],
        },
        history=[{"created": time, "created_by": "deploy/make-image"} for _ in layers],
    )
    manifest = _json(
        schemaVersion=2,
        mediaType=_MEDIA + "manifest.v1+json",
        config=_descriptor("config.v1+json", settings),
        layers=[_descriptor("layer.v1.tar+gzip", layer) for layer in layers],
    )
    annotations = {
        # Other programs take the tag alone, and their users give the name.
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        "io.containerd.image.name": name if "/" in name else f"docker.io/library/{name}",
    }
    named = {**_descriptor("manifest.v1+json", manifest), "annotations": annotations}
    files = {
        "oci-layout": _json(imageLayoutVersion="1.0.0"),
        "index.json": _json(schemaVersion=2, manifests=[named]),
        **{f"blobs/sha256/{_hash(blob)}": blob for blob in (settings, manifest, *layers)},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def bill(root: Path, version: str) -> bytes:
    """The SBOM (CycloneDX) of a root file system: Debian's packages and Python's."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "nodeagent", "version": version}},
        "components": sorted(
            [*_debian(root), *_python(root)], key=lambda component: str(component["purl"])
        ),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def _debian(root: Path) -> Iterator[dict[str, str]]:
    for paragraph in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        if fields := HeaderParser().parsestr(paragraph):
            name, version, kind = (fields[key] for key in ("Package", "Version", "Architecture"))
            purl = f"pkg:deb/debian/{name}@{version.replace(':', '%3A')}?arch={kind}"
            yield {"type": "library", "name": name, "version": version, "purl": purl}


def _python(root: Path) -> Iterator[dict[str, str]]:
    for path in root.glob("opt/nodeagent/lib/python3*/site-packages/*.dist-info/METADATA"):
        fields = HeaderParser().parsestr(path.read_text())
        name, version = fields["Name"], fields["Version"]
        normal = re.sub(r"[-_.]+", "-", name).lower()
        purl = f"pkg:pypi/{normal}@{version}"
        yield {"type": "library", "name": name, "version": version, "purl": purl}


def _descriptor(kind: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": _MEDIA + kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{_hash(blob)}"


def _hash(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _json(**values: object) -> bytes:
    return json.dumps(values).encode()


def _main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["packages"]:
            print(*packages(CONTAINERFILE.read_text()))  # noqa: T201 - what the script asks for
        case ["sbom", root, version, file]:
            Path(file).write_bytes(bill(Path(root), version))
        case ["pack", file, name, architecture, *layers]:
            config = container_config(CONTAINERFILE.read_text())
            blobs = [Path(layer).read_bytes() for layer in layers]
            created = int(os.environ["SOURCE_DATE_EPOCH"])
            Path(file).write_bytes(archive(name, architecture, config, blobs, created))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    _main(sys.argv[1:])
