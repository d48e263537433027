"""Where the tests' etcd, kube-apiserver, kustomize and helm come from.

KUBEBUILDER_ASSETS, envtest's convention, names a folder with them (kubectl has
kustomize). Otherwise etcd is Debian's, and the others are built from `apiserver/` and
`kustomize/`; helm is built from `helm/` always. That is once per machine, and takes some
minutes: `python -m tests.cluster.binaries` does it. A test run builds nothing: it has no
network.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_BUILT = {
    "kube-apiserver": _HERE / "apiserver",
    "kustomize": _HERE / "kustomize",
    "helm": _HERE / "helm",
}
_NOT_IN_ASSETS = ("helm",)
_INPUTS = ("go.mod", "go.sum", "main.go")
_NO_TOOLCHAIN = 3
"""Exit status that says: left out, not broken."""


class MissingError(Exception):
    """A program is not there; the text says what to do."""


class NoToolchainError(MissingError):
    """It could be built, but there is no Go."""


class BuildError(MissingError):
    """It cannot be built; the text is the compiler's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Paths of the programs."""

    etcd: str
    apiserver: str
    kustomize: tuple[str, ...]
    """The command, but for the folder that is its argument."""


def find() -> Binaries:
    """Where they are. Raises `MissingError`; builds nothing."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        return Binaries(
            etcd=_asset(assets, "etcd"),
            apiserver=_asset(assets, "kube-apiserver"),
            kustomize=(_asset(assets, "kubectl"), "kustomize"),
        )
    etcd = shutil.which("etcd")
    if etcd is None:
        raise MissingError("no etcd: apt-get install etcd-server, or set KUBEBUILDER_ASSETS")
    for name in ("kube-apiserver", "kustomize"):
        if not os.access(_cached(name), os.X_OK):
            raise MissingError(
                f"no {name}: run `python -m tests.cluster.binaries` (minutes, once for this "
                "machine), or set KUBEBUILDER_ASSETS"
            )
    kustomize = (str(_cached("kustomize")), "build")
    return Binaries(etcd=etcd, apiserver=str(_cached("kube-apiserver")), kustomize=kustomize)


def helm() -> str:
    """Path of the program that renders and checks a chart. Raises `MissingError`."""
    path = _cached("helm")
    if not os.access(path, os.X_OK):
        raise MissingError(
            "no helm: run `python -m tests.cluster.binaries` (minutes, once for this machine)"
        )
    return str(path)


def helm_missing() -> str | None:
    """Why the chart's tests are left out; None where they are not."""
    try:
        helm()
    except MissingError as error:
        return str(error)
    return None


def missing() -> str | None:
    """Why the tier of the cluster is left out; None where it is not."""
    try:
        find()
    except MissingError as error:
        return str(error)
    return None


def build() -> Binaries:
    """Build what is not there, and say where all are. Raises `MissingError`."""
    for name, source in _BUILT.items():
        if os.environ.get("KUBEBUILDER_ASSETS") and name not in _NOT_IN_ASSETS:
            continue
        target = _cached(name)
        with _locked(target.parent):
            if not os.access(target, os.X_OK):
                _build(source, target)
    return find()


def _asset(folder: str, name: str) -> str:
    path = Path(folder) / name
    if not os.access(path, os.X_OK):
        raise MissingError(f"KUBEBUILDER_ASSETS is {folder}, and there is no {name} in it")
    return str(path)


def _cached(name: str) -> Path:
    source = _BUILT[name]
    digest = hashlib.sha256(b"".join((source / each).read_bytes() for each in _INPUTS))
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "nodeagent-tests" / digest.hexdigest()[:16] / name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(source: Path, target: Path) -> None:
    go = shutil.which("go", path=os.environ["PATH"] + ":/usr/local/go/bin")
    if go is None:
        raise NoToolchainError(
            f"no {target.name}, and no Go toolchain to build it: install Go 1.24 or newer, "
            "or set KUBEBUILDER_ASSETS"
        )
    print(f"building {target.name}, once for this machine", file=sys.stderr)
    draft = target.with_suffix(".draft")
    built = subprocess.run(
        [go, "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(draft), "."],
        cwd=source,
        env={**os.environ, "CGO_ENABLED": "0"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if built.returncode:
        raise BuildError(f"{target.name} was not built:\n{built.stderr}")
    draft.rename(target)


def _main() -> int:
    try:
        binaries = build()
    except MissingError as error:
        print(f"tests.cluster.binaries: {error}", file=sys.stderr)
        return _NO_TOOLCHAIN if isinstance(error, NoToolchainError) else 1
    for path in (binaries.etcd, binaries.apiserver, binaries.kustomize[0], helm()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
