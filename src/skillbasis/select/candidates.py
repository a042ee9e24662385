"""What a selection strategy gets: the rows to choose from, what is known of them, and which directions are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from ..artifact import array_fingerprint, fingerprint
from ..basis import Scores
from ..corpus import Corpus, SelectedRow
from ..errors import ArtifactError, UsageError
from ..evaluate.likelihood import Likelihood
from .evidence import OwnAnswers, QueryVectors, ValidationAnswers

Sign = Literal["+", "-"]
RankBy = Literal["cosine", "projection", "centred-rank"]
Band = Literal["low", "middle", "high"]
Aggregate = Literal["round-robin", "max"]
SignedDirection = tuple[int, Sign]


@dataclass(frozen=True)
class SelectionSettings:
    """What strategies may be told."""

    directions: tuple[SignedDirection, ...] = ()
    """Signed directions, such as ((3, "+"), (0, "-"))."""
    weights: tuple[float, ...] = ()
    """Share of the budget of each direction (they need not add up to 1), such as its gain in a probe; empty shares
    equally."""
    rank_by: RankBy = "cosine"
    """What ranks rows along a direction: `cosine`, `projection` (the score), or `centred-rank`: the row's place on this
    direction among all rows, less its mean place on all directions, so that rows far out everywhere do not lead."""
    top_share: float = 0.15
    """`directions` draws at random from this share of the corpus that ranks highest, so that a direction is covered
    and not only its extreme; 0 takes the very top. A share smaller than the budget is widened to it."""
    temperature: float | None = None
    """Of `directions`: draws from the whole corpus instead, with probability proportional to exp(z / temperature), z
    the ranking in standard deviations."""
    likelihood_share: float = 0.25
    """`directions+likelihood` takes the most likely rows of this share of the corpus that ranks highest."""
    cells: int = 1
    """`directions+likelihood` takes the most likely rows of each of so many cells of the space of scores, in quotas by
    their size; 1 takes them whatever the cell."""
    quality_share: float = 0.5
    """`coverage+quality` covers this share of the corpus that is best: by quality where given, else by likelihood."""
    band: Band = "middle"
    """Third of the pool that `perplexity` draws from."""
    max_similarity: float = 0.9
    """`deita` leaves out rows whose cosine to a chosen one is above."""
    max_weight: float = 10.0
    """`human-weakness` weighs a label by 1 / accuracy, at most by this."""
    aggregate: Aggregate = "round-robin"
    """`rds+`, `crds`: each query takes its nearest row in turn, or rows are ranked by their nearest query (`max`)."""
    text_encoder: str | None = None
    """Sentence encoder of `text-diversity`, `facility-location` and `deita`; None takes TF-IDF; `native`, the whitened
    scores (not for text-diversity, which that would make coverage)."""

    rounds: int = 3
    """Of `weakness-rounds`."""

    def __post_init__(self) -> None:
        for name, allowed in (("rank_by", RankBy), ("band", Band), ("aggregate", Aggregate)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; allowed are {', '.join(get_args(allowed))}")
        for name in ("top_share", "likelihood_share", "quality_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.weights and len(self.weights) != len(self.directions):
            raise UsageError(f"{len(self.weights)} weights were given for {len(self.directions)} directions")
        if any(not (np.isfinite(weight) and weight > 0) for weight in self.weights):
            raise UsageError("the weights of directions must be numbers above 0; leave out a direction instead")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"temperature must be above 0, not {self.temperature}; top_share 0 takes the very top")
        if not self.max_weight > 0:
            raise UsageError(f"max_weight must be above 0, not {self.max_weight}")
        if self.cells < 1 or self.rounds < 1:
            raise UsageError(f"cells and rounds must be at least 1, not {self.cells} and {self.rounds}")


@dataclass(frozen=True)
class Candidates:
    """The rows to choose from and what is known of them; arrays are in corpus order.

    What is not known is None; a strategy that needs it raises a UsageError which says how to get it.
    """

    ids: Sequence[str]
    labels: Sequence[Sequence[str]]
    """Human labels of each row."""
    scores: Scores | None = None
    likelihood: Likelihood | None = None
    settings: SelectionSettings = field(default_factory=SelectionSettings)
    corpus: Corpus | None = None
    """The rows themselves, for strategies that read text."""
    n_tokens: np.ndarray | None = None
    """(n,) int64 tokens of prompt and response, as training reads them."""
    own_answers: OwnAnswers | None = None
    """The model's own graded answers to the rows' problems."""
    validation: ValidationAnswers | None = None
    """The model's own graded answers to validation problems."""
    given_quality: np.ndarray | None = None
    """(n,) a quality of each row that a person or a judge gave, more is better."""
    query: QueryVectors | None = None
    reread: Mapping[str, Likelihood] = field(default_factory=dict)
    """Likelihood under the model that a first selection made, by the strategy of that selection."""
    reference: Sequence[str] | None = None
    """Ids of a selection that a control is to match in length."""

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        scores: Scores | None = None,
        likelihood: Likelihood | None = None,
        settings: SelectionSettings | None = None,
        *,
        tokens: Mapping[str, int] | None = None,
        own_answers: OwnAnswers | None = None,
        validation: ValidationAnswers | None = None,
        quality: Mapping[str, float] | None = None,
        query: QueryVectors | None = None,
        reread: Mapping[str, Likelihood] | None = None,
        reference: Sequence[str] | None = None,
    ) -> Candidates:
        """Brings what is known by id into corpus order.

        Raises: ArtifactError: a row has no score, likelihood, count of tokens, or quality.
        """
        ids = corpus.ids
        return cls(
            ids,
            corpus.rows["labels"],
            scores.aligned(ids) if scores else None,
            likelihood.aligned(ids) if likelihood else None,
            settings or SelectionSettings(),
            corpus,
            None if tokens is None else _aligned(tokens, ids, "count of tokens", np.int64),
            None if own_answers is None else own_answers.aligned(ids),
            validation,
            None if quality is None else _aligned(quality, ids, "quality", np.float64),
            None if query is None else query.aligned(ids),
            {strategy: table.aligned(ids) for strategy, table in (reread or {}).items()},
            reference,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprints(self) -> dict[str, Any]:
        """Identifies all that is known beside the rows themselves and the settings; None where it was not measured."""
        left_out = ("ids", "labels", "settings", "corpus")
        return {f.name: _fingerprints(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}

    def with_settings(self, settings: SelectionSettings) -> Candidates:
        return replace(self, settings=settings)

    @property
    def known_scores(self) -> Scores:
        """Raises: UsageError: there are none."""
        if self.scores is None:
            raise UsageError("this strategy needs scores; make them with skillbasis score and give --scores")
        return self.scores

    @property
    def whitened(self) -> np.ndarray:
        """(n, directions that vary) float64: scores in standard deviations over the candidates.

        Raises: UsageError: there are no scores. ArtifactError: a row has a score that is not finite.
        """
        values = self.known_scores.values
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            raise ArtifactError(f"row {self.ids[broken[0]]!r} has a score that is not finite; score the corpus again")
        varying = values.min(axis=0) < values.max(axis=0)
        return (values[:, varying] - values[:, varying].mean(axis=0)) / values[:, varying].std(axis=0)  # type: ignore[no-any-return]

    def ranking(self, direction: int, sign: Sign) -> np.ndarray:
        """How far each row lies along a signed direction, (n,), larger is further.

        Raises: UsageError: there are no scores, or no such direction.
        """
        scores = self.known_scores
        if not 0 <= direction < scores.values.shape[1]:
            raise UsageError(f"direction {direction} does not exist; the scores have 0 to {scores.values.shape[1] - 1}")
        if self.settings.rank_by == "centred-rank":
            column = self._places[:, direction]
        else:
            column = scores.values[:, direction]
            if self.settings.rank_by == "cosine":  # of a row at the mean it is 0
                column = np.divide(column, scores.norm, out=np.zeros_like(column), where=scores.norm > 0)
        return column * (1.0 if sign == "+" else -1.0)

    @cached_property
    def _places(self) -> np.ndarray:
        """(n, K) place of each row on each direction, 0 to 1, less its mean place on all directions."""
        from scipy.stats import rankdata

        places = rankdata(self.known_scores.values, axis=0) / len(self.ids)
        return places - places.mean(axis=1, keepdims=True)  # type: ignore[no-any-return]

    @property
    def signed_directions(self) -> tuple[SignedDirection, ...]:
        """Raises: UsageError: none were chosen."""
        if not self.settings.directions:
            raise UsageError("this strategy needs directions; give --direction 3+ (skillbasis probe finds good ones)")
        return self.settings.directions

    @property
    def known_likelihood(self) -> Likelihood:
        """Raises: UsageError: not measured."""
        if self.likelihood is None:
            raise UsageError("this strategy needs likelihoods; give --model, or --likelihood with a measured table")
        return self.likelihood

    @property
    def mean_nll(self) -> np.ndarray:
        """(n,) mean negative log-likelihood of each response; infinite where none was read, so ranked last.

        Raises: UsageError: not measured.
        """
        return np.nan_to_num(self.known_likelihood.mean_nll, nan=np.inf)  # type: ignore[no-any-return]

    @property
    def tokens(self) -> np.ndarray:
        """(n,) tokens of prompt and response. Raises: UsageError: not counted."""
        if self.n_tokens is None:
            raise UsageError("this needs the tokens of every row; give --model, whose tokenizer counts them")
        return self.n_tokens

    @cached_property
    def _places_of_ids(self) -> dict[str, int]:
        return {row_id: i for i, row_id in enumerate(self.ids)}

    def tokens_of(self, rows: Sequence[SelectedRow]) -> np.ndarray:
        """(rows,) tokens of chosen rows; where the model's own answer stands in place of the response, of that.

        Raises: UsageError: not counted.
        """
        tokens = self.tokens[[self._places_of_ids[row.id] for row in rows]]
        for number, row in enumerate(rows):
            if row.response is not None:
                tokens[number] = self.known_own_answers.tokens_of(self._places_of_ids[row.id], row.response)
        return tokens

    @property
    def texts(self) -> list[str]:
        """Prompt, a newline and response of each row. Raises: UsageError: the rows themselves are not there."""
        if self.corpus is None:
            raise UsageError("this strategy reads the text of the rows; give the corpus, not its scores alone")
        rows = self.corpus.rows
        prompts = ("\n".join(message["content"] for message in prompt) for prompt in rows["prompt"])
        return [f"{prompt}\n{response}" for prompt, response in zip(prompts, rows["response"], strict=True)]

    @property
    def known_own_answers(self) -> OwnAnswers:
        """Raises: UsageError: the model has not answered the rows' problems."""
        if self.own_answers is None:
            raise UsageError("this strategy needs the model's own answers to the rows' problems; give --model")
        return self.own_answers

    @property
    def known_validation(self) -> ValidationAnswers:
        """Raises: UsageError: the model has not answered validation problems."""
        if self.validation is None:
            raise UsageError("this strategy needs the model's answers to validation problems; give --validation TASK")
        return self.validation

    @property
    def quality(self) -> np.ndarray:
        """(n,) given quality. Raises: UsageError: none was given."""
        if self.given_quality is None:
            raise UsageError("this strategy needs a quality of every row; name its column with --quality-column")
        return self.given_quality

    @property
    def known_reference(self) -> Sequence[str]:
        """Raises: UsageError: there is no selection to match."""
        if self.reference is None:
            raise UsageError("this strategy matches the lengths of another selection; name it with --match FILE.jsonl")
        return self.reference

    def reread_nll(self, first: str) -> np.ndarray:
        """(n,) mean NLL under the model that the selection `first` made; infinite where no response was read.

        Raises: UsageError: there is no such model.
        """
        if first not in self.reread:
            raise UsageError(f"this strategy needs the pool read again by a model fine-tuned on a selection by {first}")
        return np.nan_to_num(self.reread[first].mean_nll, nan=np.inf)  # type: ignore[no-any-return]

    @property
    def known_query(self) -> QueryVectors:
        """Raises: UsageError: there is no query set."""
        if self.query is None:
            raise UsageError(
                "this strategy needs vectors of a query set; give --model and --validation TASK or --query"
            )
        return self.query


def _fingerprints(known: Any) -> Any:
    if known is None:
        return None
    if is_dataclass(known):
        return {f.name: _fingerprints(getattr(known, f.name)) for f in fields(known) if f.name != "ids"}
    if isinstance(known, Mapping):
        return {key: _fingerprints(value) for key, value in known.items()}
    return array_fingerprint(known) if isinstance(known, np.ndarray) else fingerprint(known)


def _aligned(values: Mapping[str, float], ids: Sequence[str], what: str, dtype: type) -> np.ndarray:
    missing = [row_id for row_id in ids if row_id not in values]
    if missing:
        raise ArtifactError(f"{len(missing)} of {len(ids)} rows have no {what}, the first is {missing[0]!r}")
    return np.array([values[row_id] for row_id in ids], dtype=dtype)


def parse_direction(text: str) -> SignedDirection:
    """Reads a signed direction such as `3+` or `0-`; a bare number is positive.

    Raises: UsageError: not of that form.
    """
    match = re.fullmatch(r"d?(\d+)([+-]?)", text.strip())
    if not match:
        raise UsageError(f"{text!r} is no signed direction; write a number and a sign, such as 3+ or 0-")
    return int(match[1]), "-" if match[2] == "-" else "+"
