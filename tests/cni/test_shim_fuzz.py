"""The parts of the binary that read foreign bytes, under the sanitizers and a fuzzer."""

import asyncio
import json
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.cni.shim_process import build_checked

FUZZ = Path(__file__).parent / "fuzz"
SECONDS = 5
DEPTH = 256

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
DAMAGE = st.tuples(
    st.integers(0), st.integers(0, 3), st.sampled_from([*'{}[]:,"\\0.-+eE1ntf \n\x01', ""])
)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = ("json.c", "answer.c", "config.c", FUZZ / "fuzz.c")
    output = tmp_path_factory.mktemp("fuzz") / "fuzz"
    return build_checked(output, program=parts, flags=("-fsanitize-coverage=trace-pc",))


@pytest.fixture(scope="module")
def accepts(fuzzer: Path) -> Iterator[Callable[[bytes], bool]]:
    """Ask the binary's scanner whether a text is a JSON object."""
    pipe = subprocess.PIPE
    with subprocess.Popen((fuzzer, "judge"), stdin=pipe, stdout=pipe) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask(text: bytes) -> bool:
            stdin.write(struct.pack("=I", len(text)) + text)
            stdin.flush()
            return {b"y": True, b"n": False}[stdout.read(1)]

        yield ask
        stdin.close()
        assert process.wait() == 0


async def test_no_input_breaks_the_readers(fuzzer: Path, tmp_path: Path) -> None:
    """No byte outside the input is read, and what is promised of each part holds."""
    targets = [_fuzz(fuzzer, target, tmp_path) for target in ("config", "answer")]
    for runs, seeds, found in await asyncio.gather(*targets):
        assert runs > 1000
        assert found > 2 * seeds


async def _fuzz(fuzzer: Path, target: str, directory: Path) -> tuple[int, ...]:
    crash = directory / f"{target}.crash"
    seeds = sorted((FUZZ / "seeds").glob(f"{target}-*"))
    process = await asyncio.create_subprocess_exec(
        *(str(part) for part in (fuzzer, target, SECONDS, 1, crash, *seeds)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"ASAN_OPTIONS": "handle_abort=1"},
    )
    stdout, stderr = await process.communicate()
    broken = crash.read_bytes() if crash.exists() else b""
    assert process.returncode == 0, f"{broken!r}\n{stderr.decode()}"
    return tuple(int(number) for number in stdout.split())


# A busy machine makes examples slowly, and nothing follows from that.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=st.dictionaries(st.text(), JSON, max_size=3), damage=st.lists(DAMAGE, max_size=3))
@example(value={}, damage=[(0, 0, "")])
def test_scanner_agrees_with_python(
    accepts: Callable[[bytes], bool],
    value: dict[str, object],
    damage: list[tuple[int, int, str]],
) -> None:
    """What is JSON here is JSON to the agent, and nothing else is."""
    text = json.dumps(value, ensure_ascii=len(value) % 2 == 0)
    for at, removed, inserted in damage:
        start = at % (len(text) + 1)
        text = text[:start] + inserted + text[start + removed :]
    assert accepts(text.encode()) == _is_object(text)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (b" \t\r\n{ } \n", True),
        (b'{"a":[' + b"[" * (DEPTH - 2) + b"]" * (DEPTH - 2) + b"]}", True),
        (b'{"a":[' + b"[" * (DEPTH - 1) + b"]" * (DEPTH - 1) + b"]}", False),
        (b'{"a":' * DEPTH + b"1" + b"}" * DEPTH, True),
        (b'{"a":' * (DEPTH + 1) + b"1" + b"}" * (DEPTH + 1), False),
        (b"[" * 1_000_000, False),
        (b'{"a":"\xff"}', True),
        (b'{"a":[0,-0,10,1.05,0.0e0,1E+9,-2e-07]}', True),
        *((b'{"a":%b}' % number, False) for number in (b"01", b"-", b"+1", b".5", b"1.", b"1e")),
        *((b'{"a":"%b"}' % text, False) for text in (b"\\x", b"\\u12g4", b"\\u123", b"\n", b"\0")),
        (b'{"a":"\\"\\\\\\/\\b\\f\\n\\r\\t\\uaF09"}', True),
        (b"{}\0", False),
        (b"\xef\xbb\xbf{}", False),
        (b"[]", False),
        (b'"a"', False),
        (b"", False),
    ],
)
def test_scanner_at_its_limits(
    accepts: Callable[[bytes], bool], text: bytes, accepted: bool
) -> None:
    """One object, as deep as the limit and no deeper; bytes of a string are not looked at."""
    assert accepts(text) == accepted


def _is_object(text: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except ValueError:
        return False
