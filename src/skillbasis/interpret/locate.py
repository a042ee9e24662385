"""Where a text lies in a basis: its coordinates, how much of it is inside, and which examples lie nearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..activations import settings_of
from ..activations.reader import LocalReader, ShardJob
from ..activations.settings import ReadingPlan
from ..basis import Scores, SkillBasis
from ..corpus import Corpus
from ..errors import ArtifactError, UsageError
from ..lm import LanguageModel
from ..statistics import nan_to_none
from .attributes import prompt_text
from .exemplars import DUPLICATE_JACCARD, shingles
from .grounding import orthogonal_coordinates
from .scored import scored_rows

CANDIDATES_PER_EXAMPLE = 50
"""How many rows are looked at for each example wanted, nearest first; the others would be farther off."""


@dataclass(frozen=True)
class Coordinate:
    """Where a text lies along one direction."""

    direction: int
    score: float
    """(x - mean)·v, in units of the activations."""
    z: float
    """score / standard deviation of the scores of the corpus the basis was found on; NaN where that is 0."""
    percentile: float
    """Of 100 scored examples, how many score below, ties half; NaN without scores."""
    unstable: bool
    """Whether the direction was found to be unstable."""


@dataclass(frozen=True)
class Neighbour:
    """An example that lies in nearly the same direction from the mean, as far as the basis sees."""

    id: str
    cosine: float
    """Between the two vectors of z."""
    prompt: str
    response: str


@dataclass(frozen=True)
class Location:
    """Where a text lies in a basis."""

    read_as: str
    """What the model was given and which tokens were pooled."""
    n_tokens: int
    """Tokens that were read."""
    truncated: bool
    """Whether the text is longer and its end was not read."""
    coordinates: list[Coordinate]
    norm: float
    """|x - mean|, in units of the activations."""
    norm_percentile: float
    """Of 100 scored examples, how many lie nearer to the mean, ties half; NaN without scores. Near 100: unlike all."""
    share_inside: float
    """|P(x - mean)|^2 / |x - mean|^2, P the projection on the span of the directions; NaN at the mean itself."""
    share_percentile: float
    """Of 100 scored examples, how many have a smaller share inside, ties half; NaN without scores."""
    expected_share: float
    """Mean share inside of the scored examples; NaN without scores."""
    n_scored: int
    """Scored examples; 0 without scores."""
    nearest: list[Neighbour]
    """Nearest first, without near-duplicates; empty without a corpus."""

    def as_json(self) -> dict[str, Any]:
        """A JSON-able dict; undefined numbers are None."""
        return dict(nan_to_none(dataclasses.asdict(self)))


def read_text(text: str, basis: SkillBasis, lm: LanguageModel) -> tuple[NDArray[np.float32], str, int, bool]:
    """Reads a text with the model as the rows of the basis' corpus were read: same blocks, pooling and maximal length.

    The text is one user turn, put into the chat template where the tokenizer has one, with no response. A basis that
    was found on the tokens of responses is given those of the prompt, since there are no others.

    Returns: ((blocks, hidden) activation, what was read in words, tokens read, whether the end was cut off).
    Raises: UsageError: the text is empty. ArtifactError: the basis was not found on this model.
    """
    if not text.strip():
        raise UsageError("the text is empty; give a text to locate")
    basis.check_model(lm)
    settings = settings_of(basis.config)
    read_as = "the text as one user turn without a response"
    if settings.span == "response":
        settings = dataclasses.replace(settings, span="prompt")
        read_as += ", its own tokens pooled where the basis pools those of responses"
    reader = LocalReader(lm)
    rows = [{"id": "text", "prompt": [{"role": "user", "content": text}], "response": ""}]
    job = ShardJob(ReadingPlan.of(settings, reader.facts), "stop", rows)
    (shard,) = reader.read([job], lambda _rows, _tokens: None)
    return shard.values[0], read_as, shard.tokens[0], shard.truncated[0]


def locate(
    text: str,
    basis: SkillBasis,
    lm: LanguageModel,
    *,
    scores: Scores | None = None,
    corpus: Corpus | None = None,
    n_nearest: int = 10,
) -> Location:
    """Says where a text lies in a basis.

    Args:
        text: any text, for instance the description of a skill.
        basis: found on this model.
        lm: the model that reads the text.
        scores: of examples along the same basis; for percentiles and what is usual.
        corpus: the examples that were scored; for the nearest ones.
        n_nearest: at most how many of them. They are ordered by the cosine between vectors of z (scores divided by
            `score_std`), so every direction counts alike; a direction that never varied counts nothing.
    Raises: UsageError: the text is empty, or a corpus is given without scores. ArtifactError: basis, model, scores and
        corpus do not belong together.
    Cost: one forward pass over the text; O(n K) for n scores.
    """
    if corpus is not None and scores is None:
        raise UsageError("the nearest examples of a corpus are found by their scores; give them too")
    if scores is not None:
        scores.check_basis(basis)
        if scores.values.shape[1] != basis.n_components:
            raise ArtifactError(
                f"the scores have {scores.values.shape[1]} directions and the basis {basis.n_components}; "
                "score the corpus with this basis"
            )
    known = None if scores is None or corpus is None else scored_rows(scores, basis.mean_scores, corpus)
    activation, read_as, n_tokens, truncated = read_text(text, basis, lm)
    values = basis.transform(activation[None])[0]
    norm = float(np.linalg.norm(activation.astype(np.float64) - basis.mean))
    share = float(_shares(basis, values[None], np.array([norm]))[0])
    whitened = _whitened(values, basis)
    percentiles, others, nearest = np.full(len(values), np.nan), np.array([]), []
    if scores is not None:
        percentiles = np.array([_percentile(scores.values[:, k], values[k]) for k in range(len(values))])
        others = _shares(basis, scores.values, scores.norm)
    if known is not None:
        nearest = _nearest(whitened, _whitened(known.scores, basis), known.rows, n_nearest)
    return Location(
        read_as=read_as,
        n_tokens=n_tokens,
        truncated=truncated,
        coordinates=[
            Coordinate(
                direction=k,
                score=float(values[k]),
                z=float(values[k] / std) if std > 0 else float("nan"),
                percentile=float(percentiles[k]),
                unstable=k in basis.unstable,
            )
            for k, std in enumerate(basis.score_std)
        ],
        norm=norm,
        norm_percentile=_percentile(scores.norm, norm) if scores is not None else float("nan"),
        share_inside=share,
        share_percentile=_percentile(others[~np.isnan(others)], share),
        expected_share=float(np.nanmean(others)) if np.any(~np.isnan(others)) else float("nan"),
        n_scored=0 if scores is None else len(scores.ids),
        nearest=nearest,
    )


def _whitened(values: NDArray[np.floating], basis: SkillBasis) -> NDArray[np.float64]:
    """Scores divided by their standard deviation; 0 where that is 0."""
    std = np.broadcast_to(basis.score_std, values.shape)
    result: NDArray[np.float64] = np.zeros(values.shape)
    np.divide(values, std, out=result, where=std > 0)
    return result


def _shares(basis: SkillBasis, values: NDArray[np.floating], norm: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n,) share of the squared distance from the mean that is inside the basis; NaN at the mean."""
    inside = (orthogonal_coordinates(basis, values) ** 2).sum(axis=1)
    whole = np.asarray(norm, dtype=np.float64) ** 2
    shares: NDArray[np.float64] = np.full(len(whole), np.nan)
    np.divide(inside, whole, out=shares, where=whole > 0)
    return np.asarray(np.minimum(shares, 1.0), dtype=np.float64)  # float32 directions can give a hair more


def _percentile(values: NDArray[np.floating], value: float) -> float:
    if not len(values) or np.isnan(value):
        return float("nan")
    return float(100 * ((values < value).mean() + (values == value).mean() / 2))


def _nearest(whitened: NDArray[np.float64], others: NDArray[np.float64], rows: Any, n_nearest: int) -> list[Neighbour]:
    lengths = np.linalg.norm(others, axis=1) * np.linalg.norm(whitened)
    cosines = np.divide(others @ whitened, lengths, out=np.full(len(others), -np.inf), where=lengths > 0)
    kept: list[Neighbour] = []
    seen: list[frozenset[tuple[str, ...]]] = []
    for place in np.argsort(-cosines, kind="stable")[: CANDIDATES_PER_EXAMPLE * n_nearest].tolist():
        if len(kept) == n_nearest or cosines[place] == -np.inf:
            break
        row = rows[place]
        prompt, response = prompt_text(row["prompt"]), row["response"] or ""
        grams = shingles(f"{prompt}\n{response}")
        if _repeats(grams, seen):
            continue
        seen.append(grams)
        kept.append(Neighbour(row["id"], float(cosines[place]), prompt, response))
    return kept


def _repeats(grams: frozenset[tuple[str, ...]], seen: Sequence[frozenset[tuple[str, ...]]]) -> bool:
    return any(len(grams & other) > DUPLICATE_JACCARD * len(grams | other) for other in seen)
