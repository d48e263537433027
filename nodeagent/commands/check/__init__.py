"""`nodeagent check`: what the node lacks for an agent, with the remedy."""
