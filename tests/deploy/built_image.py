"""The agent's image, made for the tests from this tree.

Its lower layer, Debian and the requirements, needs a network and two minutes: `deploy/setup
test` makes it, once for this machine and each change of what goes into it. A test run lays the
agent on top, without a network.
"""

import subprocess
from pathlib import Path

from tests.docs.texts import ROOT
from tests.runtime import containerd

_MAKE = ROOT / "deploy/make-image"


def missing() -> str | None:
    """What keeps an image from being made in a test run, for people; None: nothing."""
    if reason := containerd.missing():
        return reason
    asked = subprocess.run([_MAKE, "cached"], capture_output=True, text=True, check=False)
    return asked.stderr.strip() if asked.returncode else None


def build(folder: Path) -> Path:
    """Make it in `folder`, with its SBOM beside it. Returns the archive."""
    made = subprocess.run([_MAKE, "test", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    [archive] = folder.glob("*.oci.tar")
    return archive
