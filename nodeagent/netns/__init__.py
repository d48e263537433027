"""Finding, verifying, holding and entering network namespaces."""
