"""Writes docs/metrics.md from the definitions: ``python -m nodeagent.metrics.reference``."""

from collections.abc import Iterator

from nodeagent.metrics.definitions import SECTIONS, Definition

_HEAD = """\
# Metrics

<!-- Made by `make docs-metrics` from nodeagent/metrics/definitions.py: change that. -->

`/metrics` on `MONITORING_PORT` (15014; 0: none; with `--pod-manifests` none unless it is set), in
Prometheus' text format or as OpenMetrics. A port that is taken costs a warning and the metrics, and
nothing else. No label has a value that a pod's owner can choose, so the answer is bounded. State is
read when Prometheus asks; that waits for nothing that an enrollment holds. Besides the figures
below there are `process_*`, as every client of Prometheus has them.

The figure to page on is `nodeagent_unredirected_pods`: a pod that is counted there sends and takes
plain text past the mesh, or will when its rules are gone. A pod whose rules the kernel lets nobody
read is counted, too. For seconds after a pod's start that is ordinary; it is not for a minute:

```
nodeagent_unredirected_oldest_age_seconds > 60
```

Then `nodeagent status` on that node names the pods, with the reason for each.
"""
_FOOT = """
There is no `istio_cni_repair_pods_repaired_total`: this agent does not repair pods with sidecars.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join((_HEAD, *_sections())) + _FOOT


def _sections() -> Iterator[str]:
    for title, definitions in SECTIONS.items():
        yield f"## {title}\n"
        yield "| name | kind | labels | what it says |"
        yield "|---|---|---|---|"
        yield from (_row(definition) for definition in definitions)
        yield ""


def _row(definition: Definition) -> str:
    labels = "; ".join(
        f"`{label}`: {', '.join(values)}" if values else f"`{label}`"
        for label, values in definition.labels.items()
    )
    return f"| `{definition.name}` | {definition.kind.value} | {labels} | {definition.text} |"


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201 - what the program is for
