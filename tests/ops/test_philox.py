"""The random words that drops are made of."""

from __future__ import annotations

import pytest
import torch
from fastmerge.kernels.reference.philox import philox, philox4x32
from hypothesis import given
from hypothesis import strategies as st


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    """Those that Random123, the authors' own code, comes with."""
    low, high = words(key)
    result = philox4x32([torch.tensor([w]) for w in words(counter)], low | high << 32)
    assert [int(w) for w in result] == words(expected)


@given(st.integers(0, 2**60), st.integers(0, 2**64 - 1))
def test_an_element_has_a_word_of_its_own(i: int, key: int) -> None:
    """Word i mod 4 of counter i div 4, whatever other elements are asked for with it."""
    counter = [(i >> 2) & 0xFFFFFFFF, i >> 34, 0, 0]
    expected = philox4x32([torch.tensor([w]) for w in counter], key)[i % 4]
    assert int(philox(torch.tensor([0, i, 7]), key)[1]) == int(expected)
