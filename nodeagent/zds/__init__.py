"""The ztunnel socket: codec, one connection's session, the server."""
