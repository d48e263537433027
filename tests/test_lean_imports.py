"""Packages that wait, packages that seem not to be there, and certificates that are not read."""

import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from nodeagent.lean_imports import absent, no_certificate_authorities, postpone


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `heavy` with a part, a child and names of its own, which nobody has loaded."""
    child = tmp_path / "heavy" / "child"
    child.mkdir(parents=True)
    (tmp_path / "heavy" / "__init__.py").write_text(
        "from heavy import child\nLOADED = child.OWN\ndef __getattr__(name): return name * 2\n"
    )
    (tmp_path / "heavy" / "part.py").write_text("NUMBER = 7\n")
    (child / "__init__.py").write_text("OWN = 'the child was loaded'\n")
    (child / "part.py").write_text("NUMBER = 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heavy"
    for name in [name for name in sys.modules if name.partition(".")[0] == "heavy"]:
        del sys.modules[name]


def test_a_part_is_imported_without_the_package(library: str) -> None:
    postpone(library, f"{library}.child")

    part = __import__("heavy.child.part").child.part

    assert part.NUMBER == 8
    assert "LOADED" not in vars(sys.modules["heavy"])
    assert "OWN" not in vars(sys.modules["heavy.child"])
    assert "heavy.part" not in sys.modules


def test_a_package_that_is_asked_for_a_name_is_as_ever(library: str) -> None:
    postpone(library, f"{library}.child")
    package = __import__("heavy.child.part")

    assert package.LOADED == "the child was loaded"
    assert package.child.part.NUMBER == 8
    assert package.anything == "anythinganything", "the package's own __getattr__"
    assert sys.modules["heavy"] is package


def test_a_name_that_is_not_there_is_an_error(library: str) -> None:
    postpone(library, f"{library}.child")

    with pytest.raises(ImportError, match="nothing"):
        exec("from heavy.child import nothing")


def test_a_package_that_is_loaded_stays(library: str) -> None:
    package = __import__(library)

    postpone(library)

    assert sys.modules[library] is package
    assert package.LOADED


def test_the_import_of_a_package_that_is_not_installed_says_so() -> None:
    postpone("no_such_package")

    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        __import__("no_such_package.part")


def test_a_package_is_not_there_for_as_long_as_the_block_lasts(library: str) -> None:
    with absent(library), pytest.raises(ModuleNotFoundError, match=library):
        __import__(f"{library}.part")

    assert __import__(library).LOADED


def test_a_package_that_is_loaded_is_there_in_the_block_too(library: str) -> None:
    package = __import__(library)

    with absent(library):
        assert __import__(library) is package

    assert sys.modules[library] is package


def _authorities() -> int:
    return ssl.create_default_context().cert_store_stats()["x509"]


def test_the_machine_has_no_certificate_authorities_in_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)

    with no_certificate_authorities():
        assert _authorities() == 0

    assert _authorities() > 0
    assert os.environ["SSL_CERT_FILE"] == certifi.where()
    assert "SSL_CERT_DIR" not in os.environ
