"""nftables, iptables and ipset for whoever has rules to read or write.

This room knows the kernel's interfaces and the programs, and no rule of its own: `redirect`
has a pod's rules, `probes` the host's. `rule` is the vocabulary; `nft` and `iptables` write
a rule in either language; `nft_state` and `iptables_tables` read what is installed;
`nft_batch`, `libnftables` and `iptables_programs` write; `errors` says what failed.
"""
