"""The in-pod rules that the stub's ports are made for, in nft's language."""

REDIRECTION = """
table inet istio-ambient-mangle {
    chain prerouting {
        type filter hook prerouting priority -150
        meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
    }
    chain output {
        type route hook output priority -150
        ct mark & 0xfff == 0x111 meta mark set ct mark
    }
}
table inet istio-ambient-nat {
    chain prerouting {
        type nat hook prerouting priority -100
        ip daddr != 127.0.0.0/8 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
        ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
    }
    chain output {
        type nat hook output priority -100
        oifname != lo udp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
        ip daddr != 127.0.0.0/8 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
        ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053
        meta l4proto tcp meta mark & 0xfff == 0x111 accept
        oifname lo ip daddr != 127.0.0.0/8 accept
        oifname lo ip6 daddr != ::1 accept
        ip daddr != 127.0.0.0/8 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
        ip6 daddr != ::1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
    }
}
table inet istio-ambient-raw {
    chain prerouting {
        type filter hook prerouting priority -300
        udp sport 53 meta mark & 0xfff != 0x539 ct zone set 1
    }
    chain output {
        type filter hook output priority -300
        udp dport 53 meta mark & 0xfff == 0x539 ct zone set 1
    }
}
"""

ROUTES = (
    "ip -4 rule add fwmark 0x111/0xfff pref 32764 lookup 100",
    "ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100",
    "ip -4 route replace local 0.0.0.0/0 dev lo table 100",
    "ip -6 route replace local ::/0 dev lo table 100",
)
