"""What the person sees: headings, remarks, and claims with what became of them."""

import contextlib
import os
import sys
from collections.abc import Iterator

_BOLD, _DIM, _RED, _GREEN = "1", "2", "31", "32"


class Screen:
    """Writes to standard output, in colors on a terminal only, and counts the claims."""

    def __init__(self) -> None:
        self.kept = 0
        self.broken = 0
        self._colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def heading(self, text: str) -> None:
        """Begin a part of the story."""
        print(f"\n{self._in(_BOLD, text)}", flush=True)

    def remark(self, text: str) -> None:
        """Say what is about to be done, or what to make of what was seen."""
        print(self._in(_DIM, f"  {text}"), flush=True)

    def claim(self, text: str, *, holds: bool, seen: str) -> None:
        """Print `text` as true, or the first line of `seen` instead of it."""
        if holds:
            self.kept += 1
            print(f"  {self._in(_GREEN, '✓')} {text}", flush=True)
        else:
            self.broken += 1
            print(f"  {self._in(_RED, '✗')} {text}", flush=True)
            first, *more = seen.splitlines() or ["nothing"]
            print(f"      seen instead: {first}{' …' if more else ''}", flush=True)

    def end(self, seconds: float) -> None:
        """Say what became of all claims, and where to read on."""
        told = f"{self.kept} claims observed" + (f", {self.broken} not" if self.broken else "")
        self.heading(f"{told}, in {seconds:.1f} s; everything is cleaned up.")
        self.remark("Read on: docs/architecture.md, a pod's way file by file; docs/redirection.md")

    @contextlib.contextmanager
    def part(self, heading: str) -> Iterator[None]:
        """One part of the story; one that breaks off is a broken claim, and the next follows."""
        self.heading(heading)
        try:
            yield
        except* (OSError, EOFError) as broken:
            self.claim("this part can be told to its end", holds=False, seen=_text(broken))

    def _in(self, color: str, text: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._colors else text


def _text(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_text, error.exceptions))
    return str(error) or type(error).__name__
