"""ZDS, the protocol between the agent and ztunnel; docs/zds.md describes it.

`ztunnels.py` is what the heart sees. It writes into `desired.py`, and each `session.py`
sends what its ztunnel lacks, as `codec.py` encodes it, over its `connection.py`. `server.py`
accepts connections.
"""
