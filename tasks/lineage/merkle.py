"""Merkle tree hashes as in RFC 6962, section 2.1 (leaf = SHA-256(0x00 || data), node = SHA-256(0x01 || left || right)).

A snapshot's identity is the root over its records' leaves, never the bytes of a file.
"""

import hashlib
from collections.abc import Iterable, Sequence

from training.digest import Digest


def root(leaves: Iterable[bytes]) -> Digest:
    """The tree head of 32-byte leaf hashes in order, in one pass and O(log n) memory (RFC 6962, 2.1).

    Raises ValueError where a leaf does not have 32 bytes.
    """
    # One subtree per set bit of the number of leaves so far: equal sizes merge at once, as in a binary counter.
    stack: list[tuple[int, bytes]] = []
    for leaf in leaves:
        if len(leaf) != 32:
            raise ValueError(f"a leaf hash has 32 bytes; found {len(leaf)}")
        size, node = 1, leaf
        while stack and stack[-1][0] == size:
            node = _node(stack.pop()[1], node)
            size *= 2
        stack.append((size, node))
    if not stack:
        return Digest("sha256", hashlib.sha256(b"").hexdigest())
    _, node = stack.pop()
    while stack:
        node = _node(stack.pop()[1], node)
    return Digest("sha256", node.hex())


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf ``index`` (RFC 6962, 2.1.1), from the leaf's sibling to the root's child."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"leaf {index} is outside a tree of {len(leaves)} leaves")
    if len(leaves) == 1:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*inclusion_path(leaves[:split], index), bytes.fromhex(root(leaves[split:]).value)]
    return [*inclusion_path(leaves[split:], index - split), bytes.fromhex(root(leaves[:split]).value)]


def included(leaf: bytes, index: int, size: int, path: Sequence[bytes], head: Digest) -> bool:
    """Whether ``path`` proves that ``leaf`` is number ``index`` of the ``size`` leaves under ``head`` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, first, last = leaf, index, size - 1
    for sibling in path:
        if last == 0:
            return False
        if first % 2 or first == last:
            node = _node(sibling, node)
            while first % 2 == 0 and first:
                first //= 2
                last //= 2
        else:
            node = _node(node, sibling)
        first //= 2
        last //= 2
    return last == 0 and node.hex() == head.value


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
