"""Network namespaces (netns): finding a pod's, verifying, holding and entering it."""
