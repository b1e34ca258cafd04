"""Which addresses processes listen at, out of /proc/net: every protocol, by the inodes of their open files."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

LISTEN, UNCONNECTED = "0A", "07"


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:
        pass
    return found


def address(words: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Address and port as /proc/net spells them: 32-bit words of the machine's own byte order, in hex."""
    host, _, port = words.partition(":")
    raw = b"".join(bytes.fromhex(host[place : place + 8])[::-1] for place in range(0, len(host), 8))
    told = ipaddress.ip_address(raw)
    mapped = told.ipv4_mapped if isinstance(told, ipaddress.IPv6Address) else None
    return mapped or told, int(port, 16)


def listening(pids: Iterable[int]) -> list[tuple[int, str, str, int]]:
    """(pid, protocol, address, port) of every socket of these processes that others could send to first."""
    found = []
    owned = {inode: pid for pid in pids for inode in sockets_of(pid)}
    for protocol, state in (("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED)):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == state and words[9] in owned:
                host, port = address(words[1])
                if port:
                    found.append((owned[words[9]], protocol, str(host), port))
    return sorted(found)


def beyond_loopback(found: Iterable[tuple[int, str, str, int]]) -> list[tuple[int, str, str, int]]:
    """Those of `listening` that another host could reach."""
    return [one for one in found if not ipaddress.ip_address(one[2]).is_loopback]
