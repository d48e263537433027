"""A test ztunnel: real listeners in the namespaces that it is handed, real traffic."""
