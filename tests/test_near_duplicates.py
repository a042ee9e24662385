from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from skillbasis.corpus import Corpus, load_corpus
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.select.near_duplicates import (
    NearDuplicate,
    NearDuplicates,
    _BandHashes,
    _each,
    _Shingles,
    bands,
    kept_near_duplicates,
    near_duplicates,
    overlooked,
    row_words,
)

WORDS = [f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "pe") for second in ("ra", "so", "ti", "vu", "xe")]


def word(i: int) -> str:
    """Different letters for each number, since `w5` would be two words."""
    return "w" + "".join(chr(ord("a") + int(digit)) for digit in str(i))


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The definition."""
    padded = [""] * (n - 1) + row_words(text) + [""] * (n - 1)
    return {tuple(padded[i : i + n]) for i in range(len(padded) - n + 1)}


def jaccard(first: str, second: str, n: int = 5) -> float:
    a, b = shingles(first, n), shingles(second, n)
    return len(a & b) / len(a | b)


def plainly(texts: list[str], ids: list[str], threshold: float, n: int) -> dict[str, NearDuplicate]:
    """Each row against every row kept before it."""
    kept: list[int] = []
    removed = {}
    for i, text in enumerate(texts):
        similarity = [jaccard(text, texts[j], n) for j in kept]
        if similarity and max(similarity) >= threshold:
            best = similarity.index(max(similarity))
            removed[ids[i]] = NearDuplicate(ids[kept[best]], similarity[best])
        else:
            kept.append(i)
    return removed


def numbered(n: int) -> list[str]:
    return [f"r{i}" for i in range(n)]


def pool(n_rows: int, seed: int) -> list[str]:
    """Rows of 1 to 120 words, two thirds of them changed copies of rows before."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(n_rows):
        words = rng.choices(WORDS, k=rng.choice([1, 3, 5, 20, 60, 120]))
        if texts and rng.random() < 2 / 3:
            words = rng.choice(texts).split()
            for _ in range(rng.choice([0, 1, 1, 2, 4])):
                words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Solve 7x+7=49.\nThe answer is \\boxed{6}.", "solve 7 x + 7 = 49 the answer is boxed 6"),
        ("12,000 - 5", "12 000 - 5"),
        ("É 3×4 求x", "é 3 × 4 求 x"),
        ("?!..", "?!.."),
        ("", ""),
    ],
)
def test_words_of_a_row_by_hand(text: str, expected: str) -> None:
    found = row_words(text)
    assert found == (expected.split() if " " in expected else [expected])


def test_similarity_by_hand() -> None:
    # With blanks, shingles of 2: _a ab bc cd d_ and _a ab bc ce e_: 3 of 7 are shared.
    found = near_duplicates(["a b c d", "a b c e"], ["first", "second"], threshold=3 / 7, n=2)
    assert found.removed == {"second": NearDuplicate("first", 3 / 7)}
    assert near_duplicates(["a b c d", "a b c e"], ["first", "second"], threshold=0.43, n=2).removed == {}


@pytest.mark.parametrize(("threshold", "n"), [(0.7, 5), (0.8, 5), (0.9, 3), (0.5, 1), (1.0, 5)])
def test_the_result_is_that_of_comparing_every_pair(threshold: float, n: int) -> None:
    texts = pool(200, seed=3)
    expected = plainly(texts, numbered(200), threshold, n)
    assert len(expected) > 20
    assert near_duplicates(texts, numbered(200), threshold, n).removed == expected
    # Read in batches of another size, from an iterator.
    assert near_duplicates(iter(texts), numbered(200), threshold, n).removed == expected


def test_a_removed_row_resembles_a_kept_one_not_only_a_removed_one() -> None:
    words = [word(i) for i in range(100)]
    chain = [  # each differs from the one before in one more word
        " ".join("other" if i % 20 == 10 and i // 20 < step else old for i, old in enumerate(words))
        for step in range(4)
    ]
    near, far = jaccard(chain[0], chain[1]), jaccard(chain[0], chain[2])
    assert near > 0.9 > far
    found = near_duplicates(chain, numbered(4), threshold=0.9)
    assert found.removed == {"r1": NearDuplicate("r0", near), "r3": NearDuplicate("r2", jaccard(chain[2], chain[3]))}
    assert found.kept(numbered(4)) == ["r0", "r2"]


def test_of_several_kept_rows_the_most_similar_is_named_and_of_equal_ones_the_first() -> None:
    words = [word(i) for i in range(60)]

    def changed(*places: int) -> str:
        return " ".join("x" + old if i in places else old for i, old in enumerate(words))

    found = near_duplicates([changed(5, 25), changed(45), changed()], numbered(3), threshold=0.7)
    assert {i: near.of for i, near in found.removed.items()} == {"r2": "r1"}
    found = near_duplicates([changed(5, 25), changed(35, 55), changed()], numbered(3), threshold=0.65)
    assert found.removed == {"r2": NearDuplicate("r0", jaccard(changed(), changed(5, 25)))}


def test_other_case_spaces_and_marks_are_no_difference_but_signs_are() -> None:
    texts = ["Solve $7x + 3 = 17$.", "solve 7x+3=17", "Solve 7x-3=17.", "Solve 7x*3=17."]
    assert near_duplicates(texts, numbered(4)).removed == {"r1": NearDuplicate("r0", 1.0)}


@pytest.mark.parametrize("place", [0, 7, 14])
def test_short_rows_that_differ_in_one_number_both_stay(place: int) -> None:
    words = row_words("9 bags hold 4 coins each and 6 more so there are now in all 42")
    other = [*words[:place], "77", *words[place + 1 :]]
    assert near_duplicates([" ".join(words), " ".join(other)], numbered(2), threshold=0.7).removed == {}
    # As the docstring says: at 0.8, one of 40 words keeps them apart and one of 41 does not.
    for n_words, n_removed in ((40, 0), (41, 1)):
        long = [word(i) for i in range(n_words)]
        for at in (0, place, n_words - 1):
            texts = [" ".join(long), " ".join([*long[:at], "77", *long[at + 1 :]])]
            assert len(near_duplicates(texts, numbered(2), threshold=0.8).removed) == n_removed


def test_rows_without_words() -> None:
    texts = ["?!", "? !", "", " \n", "…"]
    found = near_duplicates(texts, numbered(5))
    assert {i: near.of for i, near in found.removed.items()} == {"r1": "r0", "r3": "r2"}
    assert near_duplicates([], []).removed == {}


def test_a_row_repeated_very_often_costs_no_more_than_others() -> None:
    texts = [*pool(3, seed=1), *["the same row again and again"] * 5000]
    found = near_duplicates(texts, numbered(len(texts)))
    assert len(found.removed) == 4999 and {near.of for near in found.removed.values()} == {"r3"}


def test_the_order_decides_who_stays_and_nothing_else_does() -> None:
    texts = pool(200, seed=5)
    found = near_duplicates(texts, numbered(200))
    assert near_duplicates(texts, numbered(200)) == found
    assert near_duplicates(texts, numbered(200), seed=9) == found, "none is overlooked with either"
    position = {row_id: i for i, row_id in enumerate(numbered(200))}
    assert all(position[near.of] < position[row_id] for row_id, near in found.removed.items())
    assert not {near.of for near in found.removed.values()} & found.removed.keys()


def test_bands_overlook_as_often_as_they_say() -> None:
    assert bands(0.7) == (32, 4) and bands(0.8) == (25, 5) and bands(0.9) == (16, 8)
    assert overlooked(0.8, 25, 5) == pytest.approx((1 - 0.32768) ** 25) and overlooked(0.8, 25, 5) < 5e-5
    for threshold in np.linspace(0.06, 1, 95):
        n_bands, n_hashes = bands(threshold)
        assert overlooked(threshold, n_bands, n_hashes) <= 1e-3
    # Counted, with bands so few that it happens often: 1,000 pairs of texts of 52 words, 4 changed, by three seeds.
    rng, pairs = random.Random(0), []
    for i in range(1000):
        words = [word(1000 * i + j) for j in range(52)]
        other = [*words[:24], *rng.choices(WORDS, k=2), *words[26:46], *rng.choices(WORDS, k=2), *words[48:]]
        pairs += [" ".join(words), " ".join(other)]
    similarity = np.mean([jaccard(pairs[i], pairs[i + 1]) for i in range(0, 100, 2)])
    missed = []
    for seed in range(3):
        keys = _BandHashes(3, 4, seed).of(*_Shingles(5, seed).of(pairs))
        missed.append((keys[::2] != keys[1::2]).all(axis=1).mean())
    expected = overlooked(float(similarity), 3, 4)
    assert 0.2 < expected < 0.8
    # 3,000 draws have a standard error of at most 0.009; pairs of one seed share its hashes.
    assert np.mean(missed) == pytest.approx(expected, abs=0.04)


def test_shingles_are_counted_as_defined() -> None:
    texts = pool(40, seed=7)
    for n in (1, 2, 5):
        of_each = list(_each(_Shingles(n, 0), iter([texts[:25], texts[25:]])))
        assert [len(row) for row in of_each] == [len(shingles(text, n)) for text in texts]


def test_requests_that_cannot_be_meant() -> None:
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="threshold of near-duplicates must be above 0 and at most 1, not"):
            near_duplicates(["a"], ["r0"], threshold)
    with pytest.raises(UsageError, match="at least 1 word, not 0"):
        near_duplicates(["a"], ["r0"], n=0)
    with pytest.raises(UsageError, match="2 texts and 1 ids"):
        near_duplicates(["a", "b"], ["r0"])


def test_what_is_found_in_words_and_as_json() -> None:
    found = near_duplicates(["a b", "a b", "c"], numbered(3))
    assert found.sentence == (
        "1 of 3 rows share at least 80% of their shingles of 5 words with a row kept before them; 1 of these have "
        "exactly the same shingles"
    )
    assert near_duplicates(["a", "c"], numbered(2)).sentence.startswith("none of the 2 rows is a near-duplicate")
    value = json.loads(json.dumps(found.to_json()))
    assert value["removed"] == {"r1": {"of": "r0", "similarity": 1.0}} and value["n_removed"] == 1
    assert NearDuplicates.from_json(value) == found
    assert "removed" not in found.summary


# With a corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    rows = [
        {"id": f"r{i}", "prompt": text, "response": f"It is {text.upper()}"} for i, text in enumerate(pool(120, seed=2))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_corpus(path)


def test_a_corpus_is_searched_once_and_the_result_is_kept(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{p[0]['content']}\n{r}" for p, r in zip(corpus.rows["prompt"], corpus.rows["response"], strict=True)]
    calls: list[tuple[int, int]] = []
    out = tmp_path / "near-duplicates"
    found = kept_near_duplicates(out, corpus, on_progress=lambda done, of: calls.append((done, of)))
    assert found == near_duplicates(texts, corpus.ids) and found.removed
    assert calls[-1] == (120, 120)
    assert len(corpus.without(found.removed)) == 120 - len(found.removed) == len(found.kept(corpus.ids))
    with monkeypatch.context() as patch:
        patch.setattr("skillbasis.select.near_duplicates._find", lambda *_: pytest.fail("looked for again"))
        assert kept_near_duplicates(out, corpus) == found
    assert len(kept_near_duplicates(out, corpus, 0.5).removed) > len(found.removed), "other settings, looked for anew"
    other = corpus.without(["r0"])
    assert kept_near_duplicates(out, other).n_rows == 119
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(ArtifactError, match="is no near-duplicates directory"):
        kept_near_duplicates(tmp_path / "else", corpus)


def test_the_embedded_pool_of_templates_loses_almost_nothing() -> None:
    # Its rows are short, from few templates, and differ in their numbers: that is no repetition.
    pool = load_corpus("embedded", limit=3000, shuffle_seed=0)
    texts = [f"{p[0]['content']}\n{r}" for p, r in zip(pool.rows["prompt"], pool.rows["response"], strict=True)]
    assert len(near_duplicates(texts, pool.ids, 0.8).removed) == 0
    assert len(near_duplicates(texts, pool.ids, 0.7).removed) < 10
    twice = near_duplicates([*texts, *(text.upper() for text in texts[:50])], [*pool.ids, *numbered(50)])
    assert [near.of for near in twice.removed.values()] == pool.ids[:50]
