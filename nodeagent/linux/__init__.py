"""What Linux offers beside netfilter: system calls, netlink, Unix sockets, directories."""
