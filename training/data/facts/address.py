"""E-mail and IP addresses in running text."""

import ipaddress
import re
from collections.abc import Iterator

EMAIL_SCREEN = r"[^\s/]@[^\s]"
IP_SCREEN = (
    r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
    r"|(?:[0-9A-Fa-f]{1,4}:){7}|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*:"
)

# ---------------------------------------------------------------------------------------------- e-mail

_AT = re.compile(r"(?<=[\w.+\"-])@(?=[\w\[])")
_LOCAL_BACKWARDS = re.compile(r"\"[^\"\n]{1,62}\"|[\w!#$%&'*+/=?^`{|}~.-]{1,64}")
_DOMAIN = re.compile(
    r"""(?x) (?:\w(?:[\w-]{0,61}\w)?[.\u3002])+
    (?: (?i:xn--[a-z0-9-]{2,59}) (?![\w]) | [A-Za-z]{2,24} (?![A-Za-z0-9]|[_-][A-Za-z0-9]) | [^\W\d_a-zA-Z][^\W\d_]{1,23} )
    | \[ (?:IPv6:)? [0-9A-Fa-f:.]{3,45} \]"""
)


def emails(text: str) -> Iterator[tuple[int, int]]:
    """The places of e-mail addresses: a local part (quoted, too), '@', and a domain that ends as one does, or [address].

    Not those of ``git@host:path``, which everybody uses, and of names behind a slash (``medium.com/@name``).
    """
    last = 0
    for at in _AT.finditer(text):
        place = at.start()
        local = _LOCAL_BACKWARDS.match(text[max(last, place - 64) : place][::-1])
        domain = _DOMAIN.match(text, place + 1, place + 255)
        if not local or not domain or not re.search(r"\w", local[0]):
            continue
        start, end = place - local.end(), domain.end()
        name = text[start:place].lstrip("./'`*{|=&?~_-")
        if name == "git" and text[end : end + 1] == ":":
            continue
        yield place - len(name), end
        last = end


# ---------------------------------------------------------------------------------------------- IP

_V4 = re.compile(r"(?<![A-Za-z0-9_.])(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d)", re.ASCII)
_V6 = re.compile(r"(?:[0-9A-Fa-f]{0,4}:){2,8}[0-9A-Fa-f]{0,4}")
_VERSION = re.compile(
    r"(?i)(?:(?:version|ver|vers|release|build|firmware|driver|update|patch|section|chapter|clause|figure|table|rev|§)"
    r"(?: (?:no|number|is|to|from))?[\s.:=#\"']{0,3}|\bv[. ]|[a-z]/|[=~<>]=\s?[\"']?)\Z"
)
_CALLED = re.compile(r"(?i)(?:\bip(?:v4)?\b|address|adresse|\bhost|server|://|\bping|\bdns\b|gateway|router|connect)")
# Shared by everybody, or nobody's: this host, private networks, link-local, multicast, reserved, masks. Addresses that
# documents use as examples (192.0.2.0/24 and such) do count: in data of people they stand for a person's.
_NOBODY = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
            *("224.0.0.0/4", "240.0.0.0/4", "::/96"),
        ),
    )
)


def ips(text: str) -> Iterator[tuple[int, int]]:
    """The places of public IPv4 and IPv6 addresses, in order; no version numbers, no private or local addresses."""
    yield from sorted([*_v4(text), *_v6(text)])


def _v4(text: str) -> Iterator[tuple[int, int]]:
    for match in _V4.finditer(text):
        before = text[max(0, match.start() - 32) : match.start()]
        parts = [int(part) for part in match[0].split(".")]
        small = max(parts) < 32  # as in Git 1.7.12.4
        if _VERSION.search(before) or (small and not _CALLED.search(before + text[match.end() : match.end() + 20])):
            continue
        if _somebody(match[0]):
            yield match.span()


def _v6(text: str) -> Iterator[tuple[int, int]]:
    for match in _V6.finditer(text):
        start, end = match.span()
        if text[start : start + 2] != "::" and text[start : start + 1] == ":":
            start += 1  # "IP:2001:db8::1"
        elif start and (text[start - 1].isascii() and (text[start - 1].isalnum() or text[start - 1] == "_")):
            start = text.find(":", start) + 1  # "interface:2001:db8::1"
        if text[end - 1] == ":" and text[end - 2] != ":":
            end -= 1
        if text[end : end + 1].isascii() and (text[end : end + 1].isalnum() or text[end : end + 1] in ("_", ":")):
            continue
        address = text[start:end]
        groups = [group for group in address.split(":") if group]
        whole = len(groups) == 8 or (len(groups) > 1 and len(groups[0]) == 4 and groups[0][0] in "23")
        if whole and _somebody(address):
            yield start, end


def _somebody(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not any(parsed in network for network in _NOBODY if network.version == parsed.version)
