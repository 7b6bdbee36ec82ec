"""The one-pass tree head against the recursion of RFC 6962 as it is written there; inclusion proofs."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.lineage.merkle import included, inclusion_path, root
from training.digest import Digest

SIZES = st.integers(1, 70)


def leaves(size: int) -> list[bytes]:
    return [hashlib.sha256(b"\0" + str(i).encode()).digest() for i in range(size)]


def tree_head(nodes: list[bytes]) -> bytes:
    """RFC 6962, 2.1: MTH(D[n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])), k the largest power of two below n."""
    if not nodes:
        return hashlib.sha256(b"").digest()
    if len(nodes) == 1:
        return nodes[0]
    k = 1
    while 2 * k < len(nodes):
        k *= 2
    return hashlib.sha256(b"\1" + tree_head(nodes[:k]) + tree_head(nodes[k:])).digest()


def test_the_head_of_three_leaves_is_worked_by_hand() -> None:
    a, b, c = leaves(3)
    left = hashlib.sha256(b"\1" + a + b).digest()
    assert root([a, b, c]).value == hashlib.sha256(b"\1" + left + c).hexdigest()


@pytest.mark.parametrize("size", [*range(34), 63, 64, 65, 127, 128, 129])
def test_the_head_is_that_of_the_recursion(size: int) -> None:
    assert root(iter(leaves(size))).value == tree_head(leaves(size)).hex()


def test_the_head_of_known_leaves_is_the_published_one() -> None:
    # Certificate Transparency's reference vectors: eight leaf inputs and the heads after 1, 2, 3 and 8 of them.
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashed = [hashlib.sha256(b"\0" + bytes.fromhex(text)).digest() for text in data]
    assert root(hashed[:1]).value == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root(hashed[:2]).value == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert root(hashed[:3]).value == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert root(hashed).value == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_a_leaf_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes; found 31"):
        root([b"x" * 31])


@given(SIZES, st.data())
def test_every_leaf_proves_its_place_and_no_other(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    nodes = leaves(size)
    head, path = root(nodes), inclusion_path(nodes, index)
    assert included(nodes[index], index, size, path, head)
    other = data.draw(st.integers(0, size + 3).filter(lambda i: i != index))
    assert not included(nodes[index], other, size, path, head)
    assert not included(hashlib.sha256(b"stranger").digest(), index, size, path, head)
    assert not included(nodes[index], index, size, path, Digest("sha256", "0" * 64))
    if path:
        assert not included(nodes[index], index, size, path[:-1], head)
        swapped = [*path[:-1], hashlib.sha256(path[-1]).digest()]
        assert not included(nodes[index], index, size, swapped, head)
    assert not included(nodes[index], index, size, [*path, nodes[0]], head)


def test_a_proof_belongs_to_a_tree_of_its_size() -> None:
    # Some sizes share the shape of a leaf's path, so not every wrong size can be told; a longer or shorter path can.
    nodes = leaves(8)
    head = root(nodes)
    for index in range(8):
        path = inclusion_path(nodes, index)
        assert len(path) == 3
        assert not any(
            included(nodes[index], index, size, path, head) for size in (1, 2, 3, 4, 9, 16, 17) if index < size
        )


@pytest.mark.parametrize("index", [-1, 3, 99])
def test_a_leaf_outside_of_the_tree_has_no_proof(index: int) -> None:
    with pytest.raises(ValueError, match=f"leaf {index} is outside a tree of 3 leaves"):
        inclusion_path(leaves(3), index)


def test_a_leaf_that_is_moved_changes_the_head() -> None:
    nodes = leaves(5)
    assert root(nodes) != root([nodes[1], nodes[0], *nodes[2:]]) != root(nodes[:4])
