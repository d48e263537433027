"""The image of `deploy/make-image`: what is in it, and that a real containerd runs it."""

import asyncio
import gzip
import hashlib
import io
import json
import re
import tarfile
import tomllib
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from deploy.image import CONTAINERFILE, archive, container_config, packages
from nodeagent import __version__
from tests.deploy import built_image
from tests.docs.texts import ROOT
from tests.runtime.containerd import Containerd

_MOST = 120 * 2**20
"""Bytes, compressed."""
_SITE = "opt/nodeagent/lib/python3.11/site-packages"
_TOOLS = {"pip", "pip3", "gcc", "cc", "make", "apt-get", "ensurepip"}
_NAME = f"docker.io/library/nodeagent:{__version__}"


@dataclass(frozen=True, slots=True)
class _Image:
    archive: bytes
    config: dict[str, Any]
    entries: dict[str, tarfile.TarInfo]
    """By path, without a slash before it; the uppermost layer counts."""
    texts: dict[str, str]
    """The contents of some of them."""

    def names(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.entries}


@pytest.fixture(scope="module")
def image_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of this tree, packed on the lower layer that `deploy/setup test` has made."""
    return built_image.build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def built(image_archive: Path) -> _Image:
    """What is in it, read as the OCI's image layout has it."""
    content = image_archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {entry.name: _read(tar, entry) for entry in tar}

    def blob(descriptor: dict[str, Any]) -> bytes:
        kind, _, digest = descriptor["digest"].partition(":")
        found = files[f"blobs/{kind}/{digest}"]
        assert hashlib.sha256(found).hexdigest() == digest
        assert len(found) == descriptor["size"]
        return found

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    [named] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blob(named))
    config = json.loads(blob(manifest["config"]))
    entries: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, str] = {}
    layers = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["rootfs"]["diff_ids"] == digests
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
            for entry in tar:
                path = entry.name.removeprefix("./")
                entries[path] = entry
                if re.search(r"dpkg/status$|/METADATA$|cdx\.json$|nodeagent/bin/[a-z-]+$", path):
                    texts[path] = _read(tar, entry).decode()
    return _Image(content, config, entries, texts)


def _read(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    found = tar.extractfile(entry) if entry.isfile() else None
    return found.read() if found else b""


def _debian(image: _Image) -> set[str]:
    return set(re.findall(r"^Package: (.*)$", image.texts["var/lib/dpkg/status"], re.MULTILINE))


def _python(image: _Image) -> dict[str, str]:
    found = (
        HeaderParser().parsestr(text)
        for path, text in image.texts.items()
        if path.endswith("/METADATA")
    )
    return {_normal(fields["Name"]): fields["Version"] for fields in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted() -> dict[str, str]:
    """The locked requirements but for other systems' own, and the agent itself."""
    text = (ROOT / "deploy/requirements.txt").read_text()
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", text, re.MULTILINE)
    return {_normal(name): version for name, version in found} | {"nodeagent": __version__}


def test_environment_and_command(built: _Image) -> None:
    """They are the Containerfile's, and each name of a program is found by PATH."""
    assert built.config["config"] == container_config(CONTAINERFILE.read_text())
    path, pyc = built.config["config"]["Env"]
    assert path.startswith("PATH=/opt/nodeagent/bin:/usr/local/sbin:")
    assert pyc == "PYTHONDONTWRITEBYTECODE=1"
    assert built.config["config"]["Cmd"] == ["nodeagent", "run"]
    assert built.config["os"] == "linux"


def test_commands(built: _Image) -> None:
    """Each command of the package is where the Containerfile's environment has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "COPY --from=environment /opt/nodeagent /opt/nodeagent" in CONTAINERFILE.read_text()
    for name in project["scripts"]:
        assert built.entries[f"opt/nodeagent/bin/{name}"].mode & 0o777 == 0o755
        first, *_ = built.texts[f"opt/nodeagent/bin/{name}"].splitlines()
        assert first == "#!/opt/nodeagent/bin/python"


def test_packages(built: _Image) -> None:
    """Debian's are the Containerfile's, and Python's are those of the lock file."""
    asked = packages(CONTAINERFILE.read_text())
    assert {"libnftables1", "iptables", "ipset"} == set(asked) <= _debian(built)
    assert _python(built) == _wanted()


def test_bill_of_materials(built: _Image, image_archive: Path) -> None:
    """It names each package, lies beside the archive, and in the image."""
    text = built.texts["opt/nodeagent/sbom.cdx.json"]
    beside = Path(str(image_archive).replace(".oci.tar", ".cdx.json"))
    assert beside.read_text() == text
    bill = json.loads(text)
    assert bill["metadata"]["component"]["version"] == __version__
    purls = {component["purl"].partition("@")[0] for component in bill["components"]}
    assert purls == {f"pkg:deb/debian/{name}" for name in _debian(built)} | {
        f"pkg:pypi/{name}" for name in _python(built)
    }


def test_nothing_superfluous(built: _Image) -> None:
    """No way to become root, no compiler, no pip, nothing of the machine that made it."""
    assert len(built.archive) < _MOST
    files = {path: entry for path, entry in built.entries.items() if entry.isfile()}
    assert not [path for path, entry in files.items() if entry.mode & 0o6000]
    assert not [path for path, entry in files.items() if entry.mode & 0o002]
    assert not [path for path, entry in built.entries.items() if entry.isdev()]
    assert not built.names() & _TOOLS
    for folder in ("tmp", "dev", "run", "var/log", "var/cache", "var/lib/apt", "usr/share/locale"):
        assert not [path for path in files if path.startswith(f"{folder}/")]
    for path in ("etc/machine-id", "etc/hostname", "etc/resolv.conf"):
        assert path not in built.entries
    assert f"{_SITE}/nodeagent/__pycache__/cli.cpython-311.pyc" in built.entries


def test_same_bytes_again(built: _Image, tmp_path: Path) -> None:
    assert built_image.build(tmp_path).read_bytes() == built.archive


def test_arguments_make_the_archive() -> None:
    """Without the machine: a name with a registry stays as it is."""
    layer = gzip.compress(b"", mtime=0)
    one, again, other = (
        archive(name, "arm64", {}, [layer], 0) for name in ("r.invalid/a:1", "r.invalid/a:1", "a:1")
    )
    assert one == again != other
    assert b'"r.invalid/a:1"' in one
    assert b'"docker.io/library/a:1"' in other


async def test_runs_in_containerd(containerd: Containerd, image_archive: Path) -> None:
    """Both commands that the manifests and Istio's chart start, on a read-only root.

    One container for all of them: it is a copy of the whole file system.
    """
    await containerd.import_image(image_archive)
    commands = (
        "nodeagent --version",
        "nodeagent check",
        "install-cni --unheard-of",
        "iptables-nft --version",
        "iptables-legacy --version",
        "command -v ipset",
        "python -c 'import ctypes; ctypes.CDLL(\"libnftables.so.1\")'",
        "touch /x",
    )
    script = "\n".join(f"echo '#'; ({command}) 2>&1; echo $?" for command in commands)
    container = await asyncio.create_subprocess_exec(
        *("ctr", "--address", containerd.endpoint, "--namespace", "k8s.io", "run", "--rm"),
        *("--snapshotter", "native", "--read-only", _NAME, "image-test", "sh", "-c", script),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await container.communicate()
    answers = [text.strip() for text in printed.decode().split("#\n")[1:]]
    statuses = [int(text.rpartition("\n")[2]) for text in answers]
    # The container has neither a node's directories nor rights.
    assert statuses == [0, 1, 2, 0, 0, 0, 0, 1], answers
    assert f"nodeagent {__version__}\n" in answers[0]
    assert "install-cni" in answers[2]
    assert "--unheard-of" in answers[2]
    assert "Read-only file system" in answers[-1]
