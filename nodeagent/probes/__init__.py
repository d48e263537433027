"""The host's rules and sets that let health probes of enrolled pods past ztunnel."""
