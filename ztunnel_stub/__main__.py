"""``python -m ztunnel_stub``."""

from ztunnel_stub.cli import main

main()
