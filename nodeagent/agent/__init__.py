"""The running agent: how its parts are built and joined, what a node and its settings give them."""
