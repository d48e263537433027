"""nftables and iptables: reading and writing rules, and what their errors mean."""
