from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from skillbasis.basis import Scores
from skillbasis.corpus import load_corpus
from skillbasis.errors import UsageError
from skillbasis.select.candidates import Candidates, SelectionSettings
from skillbasis.select.coverage import farthest_points
from skillbasis.select.near_duplicates import row_words
from skillbasis.select.texts import diverse_texts, row_vectors, text_vectors, tf_idf

TEXTS = ["a b", "a c", "a a b c", "d", "a b"]
TOPICS = (
    "river boat sail wind wave harbour rope deck anchor tide",
    "oven bread flour yeast dough butter salt crust bake loaf",
    "orbit star moon comet planet rocket dust ring eclipse light",
)


def topical(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of three topics, and the topic of each."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(3, size=n)
    return [" ".join(rng.choice(TOPICS[t].split(), size=12)) + " and the" for t in topic], topic


def candidates(tmp_path: Path, texts: list[str], **settings: Any) -> Candidates:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"r{i}", "prompt": f"Text {i % 2}", "response": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(path)
    scores = np.random.default_rng(1).normal(size=(len(texts), 3))
    return Candidates.of(
        corpus, Scores(corpus.ids, scores, scores[:, 0], scores[:, 0]), None, SelectionSettings(**settings)
    )


def test_tf_idf_by_hand() -> None:
    table = tf_idf(TEXTS).toarray()
    # Rows with each word: a 4, b 3, c 2, d 1, of 5.
    rarity = 1 + np.log(6 / np.array([5, 4, 3, 2]))
    third = np.array([(1 + np.log(2)) * rarity[0], rarity[1], rarity[2], 0])
    np.testing.assert_allclose(table[2], third / np.linalg.norm(third), rtol=1e-6)
    np.testing.assert_allclose(table[3], [0, 0, 0, 1])
    np.testing.assert_array_equal(table[0], table[4])


def test_tf_idf_is_that_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = [*topical(200)[0], "7x + 3 = 17, ?", "Ünïcode 7x"]
    theirs = text.TfidfVectorizer(tokenizer=row_words, token_pattern=None, sublinear_tf=True)
    expected = theirs.fit_transform(texts).toarray()
    numbers: dict[str, int] = {}
    for row in texts:
        for word in row_words(row):
            numbers.setdefault(word, len(numbers))
    order = [theirs.vocabulary_[word] for word in numbers]
    np.testing.assert_allclose(tf_idf(texts).toarray(), expected[:, order], atol=1e-6)


def test_the_words_that_most_rows_have_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skillbasis.select.texts.MOST_WORDS", 2)
    table = tf_idf(["z y", "y x", "x w", "w"]).toarray()  # in rows: z 1, y 2, x 2, w 2
    assert table.shape == (4, 2)
    np.testing.assert_array_equal(table > 0, [[1, 0], [1, 1], [0, 1], [0, 0]])
    vectors = text_vectors(["z y", "y x", "x w", "w"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)


def test_with_nothing_to_cut_products_are_those_of_tf_idf() -> None:
    table = tf_idf(TEXTS).toarray()
    vectors = text_vectors(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, table @ table.T, atol=1e-6)


def test_cut_vectors_are_those_of_the_exact_decomposition() -> None:
    texts, _ = topical(300)
    vectors = text_vectors(texts, dimension=4)
    left, values, _ = np.linalg.svd(tf_idf(texts).toarray().astype(np.float64), full_matrices=False)
    exact = (left * values)[:, :4]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert vectors.shape == (300, 4) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, exact @ exact.T, atol=2e-3)  # solved in float32
    np.testing.assert_array_equal(text_vectors(texts, dimension=4), vectors)


def test_texts_of_one_topic_lie_together() -> None:
    texts, topic = topical(300)
    vectors = text_vectors(texts, dimension=3)
    cosine = vectors @ vectors.T
    same = topic[:, None] == topic
    assert cosine[same].mean() > 0.9 > 0.5 > cosine[~same].mean()


def test_the_most_diverse_texts_are_one_of_each_topic(tmp_path: Path) -> None:
    texts, topic = topical(200)
    rows = diverse_texts(candidates(tmp_path, texts), 3, np.random.default_rng(0))
    assert {topic[int(row.id[1:])] for row in rows} == {0, 1, 2}
    assert rows[0].score is None and rows[1].score > 1.0  # type: ignore[operator]
    assert rows[0].reason == "text farthest from the mean" and rows[1].reason == "text farthest from the rows before"
    rows = diverse_texts(candidates(tmp_path, texts), 200, np.random.default_rng(1))
    assert sorted(row.id for row in rows) == sorted(f"r{i}" for i in range(200))
    assert [row.rank for row in rows] == list(range(1, 201))


def test_the_strategy_takes_the_farthest_points_of_prompt_and_response(tmp_path: Path) -> None:
    texts, _ = topical(50)
    found = farthest_points(text_vectors([f"Text {i % 2}\n{text}" for i, text in enumerate(texts)]), 7)
    rows = diverse_texts(candidates(tmp_path, texts), 7, np.random.default_rng(0))
    assert [row.id for row in rows] == [f"r{i}" for i in found.indices]
    assert [row.score for row in rows[1:]] == pytest.approx(found.distances[1:])


def test_rows_of_the_same_text_fill_up(tmp_path: Path) -> None:
    given = candidates(tmp_path, ["one", "one", "two", "one"])  # r0 and r1 differ in their prompts
    rows = diverse_texts(given, 4, np.random.default_rng(0))
    assert [row.reason for row in rows][-1] == "filled up: same text vector as a row before"


def test_native_vectors_are_whitened_scores(tmp_path: Path) -> None:
    given = candidates(tmp_path, TEXTS, text_encoder="native")
    vectors, expected = row_vectors(given), given.whitened
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(UsageError, match="text-diversity compares texts.*choose coverage"):
        diverse_texts(given, 2, np.random.default_rng(0))


def test_a_sentence_encoder_gives_its_vectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    class Encoder:
        def __init__(self, name: str) -> None:
            if name == "no/such":
                raise OSError("no/such is not a local folder\nand more")
            asked.append(name)

        def encode(self, texts: list[str], *, convert_to_numpy: bool, show_progress_bar: bool) -> np.ndarray:
            assert convert_to_numpy and not show_progress_bar
            return np.array([[len(text), 3.0, 0.0] for text in texts])

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = Encoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    vectors = text_vectors(["1234", ""], "some/encoder")
    np.testing.assert_allclose(vectors, [[0.8, 0.6, 0], [0, 1, 0]], atol=1e-7)
    assert vectors.dtype == np.float32 and asked == ["some/encoder"]
    given = candidates(tmp_path, ["x", "x" * 200, "xx"], text_encoder="some/encoder")
    assert {row.id for row in diverse_texts(given, 2, np.random.default_rng(0))} == {"r1", "r0"}
    with pytest.raises(UsageError, match=r"encoder no/such cannot be loaded \(no/such is not a local folder\); check"):
        text_vectors(["a"], "no/such")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        UsageError, match=r"needs sentence-transformers; install it with pip install 'skillbasis\[embed\]'"
    ):
        text_vectors(["a"], "some/encoder")
