"""Using one part of a library without loading the rest of it.

Before Python imports ``pyroute2.netlink.rtnl`` it runs ``pyroute2/__init__.py``, which
imports everything that the library has: 200 modules and 10 MiB, for eight numbers.
``postpone("pyroute2")`` puts that off. The package is known then, so its modules can be
imported, and its own ``__init__.py`` runs if somebody asks the package itself for a
name: ``from pyroute2 import IPRoute`` works as ever.

A package is postponed only where that saves at least 5 % of the agent's memory. Measured
(resident, Python 3.11):

* pyroute2: 10 MiB of 58, with pods from a folder of manifests.
* kubernetes, kubernetes.aio, kubernetes.aio.config: 19 MiB of 96 with a cluster, in a pod.
  With a kubeconfig it is 9, as the part that reads one imports pydantic.
"""

import importlib.util
import sys
from types import ModuleType


def postpone(*packages: str) -> None:
    """Put off each package's ``__init__.py`` until it is asked for one of its own names.

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
