"""Rows that nearly repeat a row before them, found by MinHash and checked by what the two really share.

The similarity of two rows is the Jaccard similarity of their shingles, n words in a row each, with n - 1 blanks before
the first word and behind the last. So every word stands in n shingles, the last as well, which is often the answer:
without blanks two short rows that differ in their answer alone would pass for one. Rows that differ in one of m words
have a similarity of (m - 1) / (m + 2 n - 1): at n = 5 and a threshold of 0.8 they both stay if m is 40 or less.

A row is removed where one that is kept before it is at least as similar as the threshold. MinHash with banding
(locality-sensitive hashing) only says which pairs are looked at; what is removed is decided by the shingles themselves.
So nothing is removed wrongly, and a pair of similarity s is overlooked with probability (1 - s^r)^b, for b bands of r
hashes: the longest bands of which 128 hashes give so many that a pair at the threshold is overlooked at most once in a
thousand (see `bands`).

Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Rajaraman & Ullman, Mining of Massive
Datasets, chapter 3. Shingles of 5 words are those of Lee et al. 2022, arXiv 2107.06499, section 4.2.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import building, is_current, read_json, write_json
from ..corpus import Corpus
from ..errors import UsageError

KIND = "near-duplicates"
THRESHOLD = 0.8
N_WORDS = 5
N_HASHES = 128
MOST_OVERLOOKED = 1e-3
"""Probability at which a pair at the threshold may be overlooked."""
_BATCH_ROWS = 256
_CACHED_WORDS = 1 << 20
# Letters of scripts without spaces are words of their own, as in `words.py`. Unlike there, signs of calculation are
# words too: `7x + 3` and `7x - 3` are different rows. Numbers are words as they are written.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_SIGN = "[-+*/=<>^−×·⋅÷≤≥≠±|%]"
_WORD = re.compile(rf"[^\W\d_{_ALONE}]+|\d+|[{_ALONE}]|{_SIGN}")
_ASCII_WORD = re.compile(r"[a-z]+|[0-9]+|[-+*/=<>^|%]")  # the same of ASCII text, in half the time


@dataclass(frozen=True)
class NearDuplicate:
    """What a removed row repeats."""

    of: str
    """Id of the most similar kept row, the first of them where several are equally similar."""
    similarity: float
    """Jaccard similarity of their shingles."""


@dataclass(frozen=True)
class NearDuplicates:
    """What was looked for and what was found."""

    threshold: float
    n: int
    """Words of a shingle."""
    n_rows: int
    """Rows looked at."""
    overlooked_at_threshold: float
    """Probability that a pair exactly as similar as the threshold is overlooked."""
    removed: dict[str, NearDuplicate] = field(repr=False)
    """By id, in the order of the rows."""

    def kept(self, ids: Iterable[str]) -> list[str]:
        """Those ids that are not removed, in their order."""
        return [row_id for row_id in ids if row_id not in self.removed]

    @property
    def sentence(self) -> str:
        """One plain sentence."""
        like = f"share at least {self.threshold:.0%} of their shingles of {self.n} words with a row kept before them"
        if not self.removed:
            return f"none of the {self.n_rows:,} rows is a near-duplicate: none was found to {like}"
        same = sum(found.similarity == 1 for found in self.removed.values())
        return f"{len(self.removed):,} of {self.n_rows:,} rows {like}; {same:,} of these have exactly the same shingles"

    @property
    def summary(self) -> dict[str, Any]:
        """The counts without the single rows, for a record beside a selection."""
        return {
            "threshold": self.threshold,
            "n": self.n,
            "n_rows": self.n_rows,
            "n_removed": len(self.removed),
            "overlooked_at_threshold": self.overlooked_at_threshold,
            "sentence": self.sentence,
        }

    def to_json(self) -> dict[str, Any]:
        """The summary and every removed row."""
        return self.summary | {"removed": {row_id: asdict(found) for row_id, found in self.removed.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> NearDuplicates:
        """What `to_json` gave."""
        removed = {row_id: NearDuplicate(**found) for row_id, found in value["removed"].items()}
        return cls(value["threshold"], value["n"], value["n_rows"], value["overlooked_at_threshold"], removed)


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many hashes bring a pair at the threshold together.

    Two rows come together where all hashes of a band agree; each agrees with a probability equal to their similarity.
    Long bands bring few other pairs together.

    Returns: number of bands b and hashes of a band r; r is the largest with (1 - threshold^r)^b <= 0.001, b = 128 // r:
        32 x 4 at 0.7 (1.5e-4 overlooked), 25 x 5 at 0.8 (4.9e-5), 16 x 8 at 0.9 (1.2e-4). More similar pairs are
        overlooked more seldom; below a threshold of 0.053 no band is short enough, and r is 1.
    """
    lengths = [r for r in range(1, N_HASHES + 1) if overlooked(threshold, N_HASHES // r, r) <= MOST_OVERLOOKED]
    longest = max(lengths, default=1)
    return N_HASHES // longest, longest


def overlooked(similarity: float, n_bands: int, n_hashes: int) -> float:
    """Probability that two rows of a similarity agree in no band of so many hashes."""
    return float((1 - similarity**n_hashes) ** n_bands)


def row_words(text: str) -> list[str]:
    """The words of a row: runs of letters in lower case, numbers, and signs of calculation, each by itself.

    Other marks and spaces are left out; of a text that has nothing else they are its one word.
    """
    text = text.lower()
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text) or ["".join(text.split())]


def near_duplicates(
    texts: Iterable[str],
    ids: Sequence[str],
    threshold: float = THRESHOLD,
    n: int = N_WORDS,
    seed: int = 0,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> NearDuplicates:
    """Finds the rows to remove so that none kept is a near-duplicate of another.

    Rows are looked at in order, and one is removed where a row kept before it is a near-duplicate. So the first of a
    group is kept, and a row that resembles only removed rows is kept too.

    Args:
        texts: of each row, prompt and response.
        ids: of each row.
        threshold: least Jaccard similarity of a near-duplicate, above 0 to 1.
        n: words of a shingle; with the blanks, rows of fewer words have shingles too.
        seed: of the hash functions; another one may overlook other pairs.
        on_progress: called with the rows read and the rows in all.
    Returns: the removed rows; the same on every machine, whatever the threads.
    Raises: UsageError: a threshold or n that cannot be meant, or not as many ids as texts.
    Cost: O(words) to read the rows, O(rows x 128) for the bands, and for each row that agrees with others in a band
        one comparison with each of those kept. Memory for 8 bytes per row and band (200 at 0.8), and for the shingles
        of rows that agree in a band and are kept.
    """
    rows = texts if isinstance(texts, Sequence) else list(texts)
    if len(rows) != len(ids):
        raise UsageError(f"there are {len(rows)} texts and {len(ids)} ids; give one id for each text")

    def read(indices: np.ndarray | None) -> Iterator[list[str]]:
        chosen = range(len(rows)) if indices is None else indices
        return ([rows[i] for i in chosen[start : start + _BATCH_ROWS]] for start in range(0, len(chosen), _BATCH_ROWS))

    return _find(read, ids, threshold, n, seed, on_progress)


def kept_near_duplicates(
    path: Path,
    corpus: Corpus,
    threshold: float = THRESHOLD,
    n: int = N_WORDS,
    seed: int = 0,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> NearDuplicates:
    """What `near_duplicates` finds in a corpus, kept as `near_duplicates.json` in an artifact and looked for only once.

    The texts are read from the corpus a few at a time.
    """
    inputs = {"corpus": corpus.fingerprint, "threshold": threshold, "n": n, "seed": seed}
    if not is_current(path, KIND, inputs):
        with building(path, KIND, inputs, {}) as work:
            found = _find(lambda indices: _texts(corpus, indices), corpus.ids, threshold, n, seed, on_progress)
            write_json(work / "near_duplicates.json", found.to_json())
    return NearDuplicates.from_json(read_json(path / "near_duplicates.json"))


def _texts(corpus: Corpus, indices: np.ndarray | None) -> Iterator[list[str]]:
    """Prompt, a newline and response of some rows, a batch at a time."""
    rows = corpus.rows if indices is None else corpus.rows.select(indices)
    columns = rows.select_columns(["prompt", "response"]).with_format("arrow")
    for table in columns.iter(batch_size=_BATCH_ROWS):
        pairs = zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
        yield ["\n".join([*(turn["content"] for turn in prompt), response]) for prompt, response in pairs]


def _find(
    read: Callable[[np.ndarray | None], Iterator[list[str]]],
    ids: Sequence[str],
    threshold: float,
    n: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> NearDuplicates:
    """Finds them with two passes over the texts, the second over rows that agree with another in a band."""
    if not 0 < threshold <= 1:
        raise UsageError(f"the threshold of near-duplicates must be above 0 and at most 1, not {threshold}")
    if n < 1:
        raise UsageError(f"a shingle needs at least 1 word, not {n}")
    shingles = _Shingles(n, seed)
    n_bands, n_hashes = bands(threshold)
    hashes = _BandHashes(n_bands, n_hashes, seed)
    parts = [np.empty((0, n_bands), dtype=np.uint64)]
    n_read = 0
    for batch in read(None):
        parts.append(hashes.of(*shingles.of(batch)))
        n_read += len(batch)
        if on_progress is not None:
            on_progress(n_read, len(ids))
    groups = _groups(np.concatenate(parts))
    suspects = np.flatnonzero((groups >= 0).any(axis=1))
    pairs = _removed(_each(shingles, read(suspects)), groups[suspects], threshold) if len(suspects) else {}
    removed = {ids[suspects[i]]: NearDuplicate(ids[suspects[j]], similarity) for i, (j, similarity) in pairs.items()}
    return NearDuplicates(threshold, n, len(ids), overlooked(threshold, n_bands, n_hashes), removed)


class _Words(dict[str, int]):
    """64-bit hashes of words, remembered until they are too many."""

    def __missing__(self, word: str) -> int:
        import xxhash

        if len(self) >= _CACHED_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value


class _Shingles:
    """Shingles as 64-bit numbers: two different ones are the same number with a chance of about 2^-64."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.n = n
        self.factors = rng.integers(0, 2**64, n, dtype=np.uint64) | np.uint64(1)
        self.words = _Words()

    def of(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The shingles of some rows, one after the other, with repetitions, and where each row's begin."""
        split = [row_words(text) for text in texts]
        lengths = np.array([len(words) + self.n - 1 for words in split])
        # The blanks behind a row are those before the next one, so each place but the last blanks begins a shingle.
        blanks = [""] * (self.n - 1)
        flat = chain(chain.from_iterable(chain(blanks, words) for words in split), blanks)
        n_places = int(lengths.sum())
        numbers = np.fromiter(map(self.words.__getitem__, flat), np.uint64, n_places + self.n - 1)
        rolled = numbers[:n_places] * self.factors[0]
        for place in range(1, self.n):
            rolled += numbers[place : place + n_places] * self.factors[place]
        return rolled, np.concatenate([[0], lengths.cumsum()[:-1]])


def _each(shingles: _Shingles, batches: Iterator[list[str]]) -> Iterator[np.ndarray]:
    """The different shingles of each row, ascending."""
    for texts in batches:
        flat, starts = shingles.of(texts)
        yield from map(np.unique, np.split(flat, starts[1:]))


class _BandHashes:
    """One number for each band of a row: equal where all MinHashes of the band are equal.

    A MinHash is the least a x + b modulo 2^32 over the shingles, x the upper half of a shingle's number and a odd, so
    that each is a permutation of the 2^32 numbers. Such permutations are not min-wise independent for any set, but
    numbers that are hashes themselves behave as if they were (a test counts how often pairs are overlooked).
    """

    def __init__(self, n_bands: int, n_hashes: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.shape = n_bands, n_hashes
        self.a = rng.integers(0, 2**32, self.shape, dtype=np.uint32) | np.uint32(1)
        self.b = rng.integers(0, 2**32, self.shape, dtype=np.uint32)
        self.factors = rng.integers(0, 2**64, n_hashes, dtype=np.uint64) | np.uint64(1)

    def of(self, flat: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(rows, bands) uint64, of rows whose shingles stand one after the other."""
        x = (flat >> np.uint64(32)).astype(np.uint32)
        image = np.empty_like(x)
        keys = np.zeros((self.shape[0], len(starts)), dtype=np.uint64)
        for band, place in np.ndindex(self.shape):  # one hash at a time stays in the cache
            np.multiply(x, self.a[band, place], out=image)
            np.add(image, self.b[band, place], out=image)
            keys[band] += np.minimum.reduceat(image, starts).astype(np.uint64) * self.factors[place]
        return keys.T


def _groups(keys: np.ndarray) -> np.ndarray:
    """(rows, bands) int64: the number of the rows that agree in a band, different in each; -1 for a row alone."""
    groups = np.empty(keys.shape, dtype=np.int64)
    first = 0
    for band in range(keys.shape[1]):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        groups[:, band] = np.where(counts[inverse] > 1, inverse + first, -1)
        first += len(counts)
    return groups


def _removed(rows: Iterator[np.ndarray], groups: np.ndarray, threshold: float) -> dict[int, tuple[int, float]]:
    """For each row that is removed the kept one that it is most similar to, and how similar it is.

    Args:
        rows: shingles of each, different and ascending.
        groups: (rows, bands) as `_groups` gives them.
    """
    kept: dict[int, np.ndarray] = {}
    of_group: dict[int, list[int]] = defaultdict(list)
    removed: dict[int, tuple[int, float]] = {}
    for i, row in enumerate(rows):
        mine = groups[i][groups[i] >= 0].tolist()
        others = sorted({other for group in mine for other in of_group.get(group, ())})
        # Sizes alone bound the similarity.
        near = [o for o in others if threshold * max(len(row), len(kept[o])) <= min(len(row), len(kept[o]))]
        similarity = _similarities(row, [kept[other] for other in near])
        if len(near) and similarity.max() >= threshold:
            best = int(similarity.argmax())
            removed[i] = near[best], float(similarity[best])
            continue
        kept[i] = row
        for group in mine:
            of_group[group].append(i)
    return removed


def _similarities(row: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """(others,) Jaccard similarity of a set of shingles with each other; all are different numbers, ascending."""
    if not others:
        return np.empty(0)
    flat = np.concatenate(others)
    lengths = np.array([len(other) for other in others])
    shared = row[np.minimum(np.searchsorted(row, flat), len(row) - 1)] == flat
    n_shared = np.add.reduceat(shared.astype(np.int64), np.concatenate([[0], lengths.cumsum()[:-1]]))
    return n_shared / (len(row) + lengths - n_shared)  # type: ignore[no-any-return]
