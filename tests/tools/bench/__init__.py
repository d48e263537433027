"""The figures of docs/performance.md: ``python -m tests.tools.bench``."""
