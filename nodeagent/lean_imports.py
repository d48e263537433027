"""Importing less than a library would have imported.

What is imported is most of the agent's memory, and most of the time until it is ready. Each
use of these functions saves 5 % or more of one of them, and says beside the call how much.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from types import ModuleType

_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Where OpenSSL looks for certificate authorities: names of environment variables."""


def postpone(*packages: str) -> None:
    """Put off each package's ``__init__.py`` until it is asked for one of its own names.

    Before Python imports ``pyroute2.netlink.rtnl`` it runs ``pyroute2/__init__.py``, which
    imports everything that the library has. After ``postpone("pyroute2")`` the package's
    modules can be imported without that. ``from pyroute2 import IPRoute`` works as ever:
    it runs the package's own code, then.

    A parent comes before its child: ``postpone("kubernetes", "kubernetes.aio")``. Does
    nothing for a package that is loaded already, or that is not installed: the import
    that follows says so. For a package that one thread at a time asks.
    """
    for package in packages:
        if package not in sys.modules and (spec := importlib.util.find_spec(package)):
            module = importlib.util.module_from_spec(spec)
            vars(module)["__getattr__"] = _Loading(module)
            sys.modules[package] = module
            parent, _, child = package.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)


@contextlib.contextmanager
def absent(package: str) -> Iterator[None]:
    """Let `package` not be installed, for what is imported in the block.

    For a library that loads another one where it is there, and does without where it is
    not. Does nothing for a package that is loaded already.
    """
    if package in sys.modules:
        yield
        return
    # This is how Python's import is told that there is no such module.
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def no_certificate_authorities() -> Iterator[None]:
    """Let the machine have no certificate authorities, for TLS contexts made in the block.

    OpenSSL reads some 140 certificates for each context that is made without its own.
    """
    before = {name: os.environ.get(name) for name in _AUTHORITIES}
    os.environ.update(dict.fromkeys(_AUTHORITIES, os.devnull))
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


class _Loading:
    """A module's ``__getattr__``, which Python calls for a name that the module lacks."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __call__(self, name: str) -> object:
        """Run the package's own code, which may bring a ``__getattr__`` of its own."""
        module = self._module
        del vars(module)["__getattr__"]
        assert module.__spec__ is not None and module.__spec__.loader is not None  # noqa: S101, PT018 - `postpone` made it from one
        module.__spec__.loader.exec_module(module)
        return getattr(module, name)
