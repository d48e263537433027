"""Pods without a cluster: network namespaces joined by a bridge, and apps to run in them."""
