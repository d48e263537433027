"""The redirection of pods: which rules and routes lead a pod's traffic through ztunnel.

`rules` says which rules a pod gets, as data, and `defaults` from which settings and
annotations that follows. `nft_*` and `iptables_*` are the two backends that write them,
`routes` and `reply_path` the routing that they need. `in_pod` puts both together inside a
netns; `redirector` is what the rest of the agent calls.
"""
