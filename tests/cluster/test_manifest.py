"""One file of manifests: what it may say, and how an error in it is named."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.cluster.manifest import MAX_SIZE, ManifestError, derived_uid, parse
from nodeagent.mesh.pod import Namespace, Pod


def pods(text: str) -> list[Pod]:
    values = (document.value for document in parse(text.encode()).documents)
    return [value for value in values if isinstance(value, Pod)]


def pod(more: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n{more}\n"


def test_what_is_not_said_has_kubernetes_defaults() -> None:
    """A pod needs no more than a name; its UID then follows from namespace and name."""
    (web,) = pods(pod())
    assert web == Pod(uid=derived_uid("default", "web"), name="web", namespace="default")
    assert (web.service_account, web.host_network, web.phase) == ("default", False, "Running")
    assert derived_uid("default", "web") != derived_uid("other", "web")


def test_other_kinds_are_passed_over() -> None:
    """A manifest may hold more than the agent needs, other groups' kinds named Pod too."""
    manifest = parse(
        b"kind: Service\nmetadata: {name: a}\n---\n---\n"
        b"apiVersion: example.com/v1\nkind: Pod\n---\n"
        b"kind: Namespace\nmetadata: {name: demo}\n"
    )
    assert [(d.number, d.value) for d in manifest.documents] == [(4, Namespace("demo"))]
    assert manifest.ignored == ("Service", "Pod")


def test_json_and_yaml_say_the_same() -> None:
    """Whether a file is YAML or JSON follows from its content."""
    document = {"kind": "Pod", "metadata": {"name": "web", "labels": {"a": "b"}}}
    assert pods(json.dumps(document)) == pods("{kind: Pod, metadata: {name: web, labels: {a: b}}}")
    assert pods(json.dumps(document, indent="\t")) == pods(json.dumps(document))


def test_a_date_is_text() -> None:
    """A label's value that looks like a date stays what was written."""
    (web,) = pods(pod("  labels: {day: 2024-13-45, year: 2024-01-01}"))
    assert web.labels == {"day": "2024-13-45", "year": "2024-01-01"}


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("  labels: {a: 1}", "metadata.labels.a: a string is expected, not 1; quote it"),
        ("  labels: {1: a}", "metadata.labels: a key is a string, not 1; quote it"),
        ("  labels: [a]", "metadata.labels: a mapping is expected"),
        ("  annotations: {a: true}", "metadata.annotations.a: a string is expected, not true"),
        ("  annotations: {a: [1]}", "metadata.annotations.a: a string is expected, not a list"),
        ("  uid: a/b", 'metadata.uid: "a/b" is not a UID'),
        (f"  uid: {'x' * 64}", "metadata.uid: "),
        ("  namespace: Demo", 'metadata.namespace: "Demo" is not a name'),
        (f"  namespace: {'x' * 64}", "metadata.namespace: "),
        ("  name: ../web", 'metadata.name: "../web" is not a name'),
        (f"  name: {'x' * 254}", "metadata.name: "),
        (f"spec: {{serviceAccountName: {'x' * 254}}}", "spec.serviceAccountName: "),
        ("spec: {hostNetwork: 'no'}", 'spec.hostNetwork: true or false is expected, not "no"'),
        ("spec: text", "spec: a mapping is expected"),
        ("status: {phase: 7}", "status.phase: a string is expected, not 7"),
        ("status: {podIP: 10.0.0.256}", 'status.podIP: "10.0.0.256" is not an IP address'),
        ("status: {podIPs: [{ip: 127.0.0.1}]}", 'status.podIPs[0].ip: "127.0.0.1" is not an addr'),
        ("status: {podIPs: [{ip: '::'}]}", 'status.podIPs[0].ip: "::" is not an address'),
        ("status: {podIPs: [{ip: 'fe80::1%lo'}]}", "status.podIPs[0].ip: "),
        ("status: {podIPs: [{ip: 10.0.0.1}, {}]}", "status.podIPs[1].ip: is missing"),
        ("status: {podIPs: 10.0.0.1}", "status.podIPs: a list is expected"),
    ],
)
def test_an_error_names_document_and_field(more: str, error: str) -> None:
    """L10, and the bounds of a ZDS packet: what cannot be right is refused, with its place."""
    with pytest.raises(ManifestError) as caught:
        parse(f"kind: Namespace\nmetadata: {{name: demo}}\n---\n{pod(more)}".encode())
    assert str(caught.value).startswith(f"document 2: {error}")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "the file is empty"),
        (b"#" * (MAX_SIZE + 1), f"the file has more than {MAX_SIZE} bytes"),
        (b"kind: \xff", "byte 6 is not UTF-8"),
        (b"kind: Pod\n---\na: b: c\n", "document 2: line 3: mapping values are not allowed"),
        (b"a: &x [1]\nb: *x\n", "document 1: aliases (*name) are not supported"),
        (b"&x [*x]", "document 1: aliases"),
        (b"!!python/object:os.system {}\n", "document 1: line 1: could not determine"),
        (b"a: !!int x\n", "document 1: a value does not fit its tag"),
        (b"a: !!timestamp x\n", "document 1: a value does not fit its tag"),
        (b"a: !!bool x\n", "document 1: a value does not fit its tag"),
        (b"? [a]\n: b\n", "document 1: line 1: found unhashable key"),
        (b"- a\n", "document 1: a mapping is expected"),
        (b"metadata: {name: web}\n", "document 1: kind: is missing"),
        (b"kind: List\nitems: [{kind: Pod}]", "document 1: items[0].metadata.name: is missing"),
        (b"kind: List\nitems: [null]", "document 1: items[0].kind: is missing"),
        (b"[" * 500_000, "document 1: it is more than 64 levels deep"),
        (b"{" * 500_000, "document 1: it is more than 64 levels deep"),
        (b"- " * 500_000, "document 1: it is more than 64 levels deep"),
        (b'{"a":' * 100_000, "document 1: it is more than 64 levels deep"),
        (
            b"kind: List\nitems: [" + b"{kind: X}," * 5000 + b"]",
            "document 1: items[4096]: the file",
        ),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_file_out_of_bounds_is_refused(data: bytes, error: str) -> None:
    """Nothing that a file may hold crashes the agent, or keeps it busy."""
    with pytest.raises(ManifestError) as caught:
        parse(data)
    assert str(caught.value).startswith(error)


def snippets() -> Iterator[str]:
    yield from ("kind: Pod", "kind: List", "metadata:", "  name: a", "items:", "- ", "---", "!!set")
    yield from ("{", "}", "[", "]", "&a", "*a", "<<: ", "? ", "'", '"', "\t", "\n", "|", "1:1", "~")


@pytest.mark.fuzz
@given(
    st.lists(st.sampled_from(list(snippets())) | st.text(max_size=5), max_size=12), st.booleans()
)
def test_any_text_is_read_or_refused(parts: list[str], lines: bool) -> None:
    """Whatever the file holds, the answer is a manifest or a ``ManifestError``."""
    try:
        parse(("\n" if lines else "").join(parts).encode(errors="surrogatepass"))
    except ManifestError:
        return


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@pytest.mark.fuzz
@given(
    st.sampled_from(["kind", "apiVersion", "metadata", "spec", "status"]),
    st.sampled_from(["name", "namespace", "uid", "labels", "annotations", "podIP", "podIPs"]),
    st.booleans(),
    values,
)
def test_any_value_in_a_field(part: str, field: str, whole: bool, value: object) -> None:
    """Whatever stands in a field, in YAML or JSON, it is a pod that can be told of or an error
    that can be read.
    """
    document: dict[str, object] = {"kind": "Pod", "metadata": {"name": "web"}}
    document[part] = value if whole else {"name": "web", field: value}
    for text in (json.dumps(document), "--- \n" + json.dumps(document)):
        try:
            manifest = parse(text.encode())
        except ManifestError as error:
            str(error).encode()
        else:
            repr(manifest).encode()


@pytest.mark.parametrize(
    "text",
    [
        r'{"kind": "Pod", "metadata": {"name": "web", "labels": {"a": "\ud800"}}}',
        r'{"kind": "Pod", "metadata": {"name": "web", "labels": {"\ud800": "a"}}}',
    ],
)
def test_half_a_character(text: str) -> None:
    """A label that can be written nowhere is refused here, not where it is sent to ztunnel."""
    with pytest.raises(ManifestError, match=r"metadata\.labels"):
        parse(text.encode())


def test_aliases_that_multiply() -> None:
    """A small file that names itself again and again is refused, and is never unfolded."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with pytest.raises(ManifestError, match="aliases"):
        parse("\n".join(lines).encode())
