"""Vectors of the rows' texts, and the rows whose texts lie far from each other.

Without a sentence encoder the vectors are those of latent semantic analysis: TF-IDF of the words, reduced by a
truncated singular value decomposition (Deerwester et al. 1990, Indexing by latent semantic analysis).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..corpus import SelectedRow
from ..errors import UsageError
from .candidates import Candidates
from .coverage import farthest_points
from .near_duplicates import row_words

if TYPE_CHECKING:
    import scipy.sparse

NATIVE = "native"
"""In place of a sentence encoder: the scores along the directions of the basis."""
DIMENSION = 128
MOST_WORDS = 50_000
"""Words of TF-IDF: those that most rows have."""


def text_vectors(texts: Sequence[str], encoder: str | None = None, dimension: int = DIMENSION) -> np.ndarray:
    """Vectors of texts whose products are cosines.

    Args:
        encoder: name or folder of a model for sentence-transformers (extra `embed`); None takes TF-IDF.
        dimension: of TF-IDF vectors, at most; an encoder has its own.
    Returns: (n_texts, dimension) float32 rows of norm 1; with TF-IDF a text of which no word is counted is 0.
    Raises: UsageError: sentence-transformers is not installed, or has no such model.
    Cost: of TF-IDF, O(words) and about 2 x dimension products with a sparse matrix of one entry for each different word
        of a text; 12 bytes per entry, and 4 x dimension per text.
    """
    if encoder is not None:
        return _encoded(texts, encoder)
    table = tf_idf(texts)
    smaller = min(table.shape)
    if smaller <= dimension:  # nothing to cut: exact, and of so few rows or words a dense table is small
        right = np.linalg.svd(table.toarray(), full_matrices=False)[2]
    else:
        from scipy.sparse.linalg import svds

        # What the solver starts from is given, so that the same texts have the same vectors.
        start = np.random.default_rng(0).standard_normal(smaller).astype(np.float32)
        only = "vh"  # the stubs name it otherwise
        right = svds(table, k=dimension, v0=start, return_singular_vectors=only)[2]  # type: ignore[arg-type]
    return _unit(table @ right.T)  # row by row, so that equal texts have equal vectors to the last bit


def tf_idf(texts: Sequence[str]) -> scipy.sparse.csr_array:
    """TF-IDF with rows of norm 1: (1 + log count) (1 + log((1 + n_texts) / (1 + texts with the word))).

    Words are those of `row_words`; above 50,000 those that most texts have are kept, of equal ones the first to occur.

    Returns: (n_texts, n_words) float32, words in the order they occur first.
    """
    from scipy.sparse import csr_array

    numbers: dict[str, int] = {}
    words, ends = array("i"), array("q", [0])
    for text in texts:
        words.extend([numbers.setdefault(word, len(numbers)) for word in row_words(text)])
        ends.append(len(words))
    counts = csr_array(
        (np.ones(len(words), dtype=np.float32), np.array(words, dtype=np.int32), np.array(ends, dtype=np.int64)),
        shape=(len(texts), len(numbers)),
    )
    counts.sum_duplicates()
    n_rows_with = np.bincount(counts.indices, minlength=len(numbers))
    if len(numbers) > MOST_WORDS:
        most = np.sort(np.argsort(-n_rows_with, kind="stable")[:MOST_WORDS])
        counts, n_rows_with = counts[:, most], n_rows_with[most]
    rarity = 1 + np.log((1 + len(texts)) / (1 + n_rows_with))
    counts.data = ((1 + np.log(counts.data)) * rarity[counts.indices]).astype(np.float32)
    norms = np.sqrt(counts.multiply(counts).sum(axis=1))
    counts.data /= np.repeat(norms, np.diff(counts.indptr))
    return counts


def row_vectors(candidates: Candidates) -> np.ndarray:
    """(n, d) float32 unit vectors of the candidates, by the setting `text_encoder`; `native` takes whitened scores.

    Raises: UsageError: there are no texts, no such encoder, or no scores. ArtifactError: a score is not finite.
    """
    if candidates.settings.text_encoder == NATIVE:
        return _unit(candidates.whitened)
    return text_vectors(candidates.texts, candidates.settings.text_encoder)


def diverse_texts(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Takes rows whose texts lie far from each other (k-centre over text vectors); the seed changes nothing.

    The score of a row is the distance of its vector to that of the nearest row chosen before; the first has none. Ties
    go to the first in corpus order.
    Raises: UsageError: there are no texts, or no such encoder.
    """
    if candidates.settings.text_encoder == NATIVE:
        raise UsageError("text-diversity compares texts, not scores; choose coverage for the rows' scores")
    found = farthest_points(row_vectors(candidates), budget)
    return [
        SelectedRow(candidates.ids[i], rank, float(d) if rank > 1 else None, reason=_reason(d))
        for rank, (i, d) in enumerate(zip(found.indices, found.distances, strict=True), 1)
    ]


def _reason(distance: float) -> str:
    if distance == np.inf:
        return "text farthest from the mean"
    return "text farthest from the rows before" if distance > 0 else "filled up: same text vector as a row before"


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float32; a row of norm 0 stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def _encoded(texts: Sequence[str], encoder: str) -> np.ndarray:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            f"the text encoder {encoder} needs sentence-transformers; install it with pip install 'skillbasis[embed]', "
            "or give no encoder for TF-IDF"
        ) from None
    try:
        model: Any = SentenceTransformer(encoder)
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"the text encoder {encoder} cannot be loaded ({reason}); check its name or folder") from error
    vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return _unit(np.asarray(vectors, dtype=np.float32))
