"""Sequences that lie inside others, as a phrase lies in its sentence. Splits that share such sequences leak.

Shapes: n sequences; T tokens, those of all sequences one after the other; L tokens of a stored row, padding included.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NGRAM", "SEVERAL", "Sequences", "inside", "roots"]

SEVERAL = -1
"""Instead of a root: the sequence lies inside several others, none of which contains the others."""

NGRAM = 8
"""Two texts overlap if they share this many tokens in a row."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of the rolling hash: odd, so that no token is lost modulo 2^64


@dataclass(frozen=True)
class Sequences:
    """Sequences without padding.

    Attributes:
        ids: of the tokens, ``(T,)``.
        owner: which sequence each token belongs to, ``(T,)``.
        length: tokens of each sequence, ``(n,)``.
    """

    ids: NDArray[np.uint64]
    owner: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(cls, rows: NDArray[np.integer], pad: int | None) -> "Sequences":
        """From stored rows ``(n, L)``, without a token that begins or ends every row ([CLS], [SEP])."""
        real = np.ones(rows.shape, bool) if pad is None else rows != pad
        last = rows.shape[1] - 1 - real[:, ::-1].argmax(axis=1)
        every = np.arange(len(rows))
        if len(rows) > 1 and len(np.unique(rows[every, last])) == 1:
            real[every, last] = False
        if len(rows) > 1 and len(np.unique(rows[:, 0])) == 1:
            real[:, 0] = False
        owner, position = np.nonzero(real)
        return cls(rows[owner, position].astype(np.uint64), owner, real.sum(axis=1))

    def take(self, chosen: NDArray[np.bool_]) -> "Sequences":
        """Only the chosen sequences; they keep their numbers, and the others become empty. ``chosen`` is ``(n,)``."""
        of_chosen = chosen[self.owner]
        return Sequences(self.ids[of_chosen], self.owner[of_chosen], np.where(chosen, self.length, 0))

    def ngrams(self, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """A hash of every ``n`` consecutive tokens of a sequence, and the number of that sequence."""
        count = len(self.ids) - n + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        hashes = np.zeros(count, np.uint64)
        for i in range(n):
            hashes = hashes * MULTIPLIER + self.ids[i : i + count] + np.uint64(1)
        within_one = self.owner[:count] == self.owner[n - 1 :]
        return hashes[within_one], self.owner[:count][within_one]


def roots(texts: Sequences) -> NDArray[np.int64]:
    """For each sequence the number of the longest one that contains it, or its own, or `SEVERAL`: ``(n,)``."""
    root = np.arange(len(texts.length))
    longest = np.zeros(len(texts.length), bool)
    for n in np.unique(texts.length)[::-1]:
        now = np.flatnonzero(texts.length == n)
        if n == 0:
            root[now] = SEVERAL
            continue
        text_hashes, _ = texts.take(texts.length == n).ngrams(int(n))
        grams, owner = texts.take(longest).ngrams(int(n))
        order = np.lexsort((owner, grams))
        grams, owner = grams[order], owner[order]
        first, end = np.searchsorted(grams, text_hashes), np.searchsorted(grams, text_hashes, side="right")
        within = end > first
        one = owner[first[within]]
        root[now[within]] = np.where(one == owner[end[within] - 1], one, SEVERAL)
        # the first of equal sequences is their root
        _, first_of, which = np.unique(text_hashes[~within], return_index=True, return_inverse=True)
        firsts = now[~within][first_of]
        root[now[~within]] = firsts[which]
        longest[firsts] = True
    return root


def inside(texts: Sequences, others: Sequences) -> NDArray[np.bool_]:
    """Which sequences share `NGRAM` tokens in a row with one of the others or, if shorter, lie inside one: ``(n,)``."""
    overlaps = np.zeros(len(texts.length), bool)
    for n in range(1, NGRAM + 1):
        of_length = texts.length >= n if n == NGRAM else texts.length == n
        grams, owner = texts.take(of_length).ngrams(n)
        overlaps[owner[np.isin(grams, others.ngrams(n)[0])]] = True
    return overlaps
