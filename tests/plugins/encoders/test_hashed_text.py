"""Word counts in hashed columns, against the hash written out byte by byte."""

import math
import unicodedata
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import normalize

from metarec.errors import DataError
from metarec.plugins.encoders.hashed_text import HashedText, fnv1a_64

texts = st.lists(st.none() | st.text(alphabet="aAbZ09 -'.,äßÉ中é\u0301\n", max_size=12), min_size=1)


def fnv1a(word: str) -> int:
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    spaced = (char if unicodedata.category(char)[0] in "LN" else " " for char in text.lower())
    return "".join(spaced).split()


def expected(text: str | None, buckets: int) -> list[float]:
    counts = Counter(fnv1a(word) % buckets for word in words(text or ""))
    length = math.sqrt(sum(count**2 for count in counts.values()))
    return [counts[bucket] / (length or 1) for bucket in range(buckets)] + [float(not counts)]


def test_published_values_of_the_hash():
    # From the FNV page's test vectors: http://www.isthe.com/chongo/tech/comp/fnv/
    hashes = fnv1a_64(pl.Series(["", "a", "foobar"]))
    assert hashes.tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]


@given(st.lists(st.text(max_size=20)))
def test_the_hash_is_that_of_each_string_alone(strings):
    assert fnv1a_64(pl.Series(strings, dtype=pl.String)).tolist() == [fnv1a(string) for string in strings]


def test_by_hand(stored):
    encoder = HashedText(buckets=1 << 20).fit(pl.Series("plot", ["anything"]))
    asked = pl.Series("plot", ["The dog, the CAT: the end", "--", None, ""])
    dense = encoder.transform(asked).dense()
    the, dog, cat, end = (fnv1a(word) % (1 << 20) for word in ("the", "dog", "cat", "end"))
    assert dense[0].nonzero().flatten().tolist() == sorted([the, dog, cat, end])
    assert dense[0, [the, dog]].tolist() == pytest.approx([3 / 12**0.5, 1 / 12**0.5])
    assert torch.equal(dense[1:].nonzero(), torch.tensor([[0, 1 << 20], [1, 1 << 20], [2, 1 << 20]]))
    assert torch.equal(dense[1:, -1], torch.ones(3))
    assert dict(encoder.table())["hash"] == "fnv1a-64"
    assert torch.equal(stored(encoder).transform(asked).dense(), dense)


@given(texts, st.integers(1, 40))
def test_like_counting_words_one_by_one(asked, buckets):
    column = pl.Series("a", asked, dtype=pl.String)
    found = HashedText(buckets=buckets).fit(column).transform(column)
    assert np.allclose(found.dense().numpy(), [expected(text, buckets) for text in asked])
    assert found.width == buckets + 1
    assert np.allclose(np.linalg.norm(found.dense(), axis=1), 1)


def test_texts_are_told_apart_as_by_their_words():
    """The angles between texts are those of plain word counts, as long as no two words share a column."""
    random = np.random.default_rng(0)
    vocabulary = [f"word{number}" for number in range(60)]
    assert len({fnv1a(word) % (1 << 16) for word in vocabulary}) == len(vocabulary)
    counts = random.poisson(0.3, (30, len(vocabulary)))
    counts[:, 0] += 1
    column = pl.Series("a", [" ".join(np.repeat(vocabulary, row)) for row in counts])
    dense = HashedText(buckets=1 << 16).fit(column).transform(column).dense().numpy()
    plain = normalize(counts)
    assert np.allclose(dense @ dense.T, plain @ plain.T, atol=1e-6)


def test_numbers_are_no_text():
    with pytest.raises(DataError, match=r"^attribute 'plot': found Float64, expected strings"):
        HashedText().fit(pl.Series("plot", [1.5]))
