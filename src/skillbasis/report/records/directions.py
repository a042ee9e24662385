"""What the report reads of the meaning of directions: examples of both ends, words, attributes, labels.

A number that is undefined is None, never 0. Differences and metrics are fractions (0.01 is one percentage point).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .figures import ALPHA, Interval

PREVIEW_CHARS = 120


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat prompt."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """A row of the corpus at one end of a direction. Its text is data: shown, never run."""

    id: str
    score: float | None = None
    cosine: float | None = None
    tokens: int | None = None
    """As the model read it, from the activations; None where they are not there."""
    prompt: str | tuple[Message, ...] = ""
    response: str = ""

    @property
    def prompt_text(self) -> str:
        """The prompt as one text; the turns of a chat carry their roles."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.prompt)

    @property
    def preview(self) -> str:
        """The beginning of the prompt (else of the response) on one line."""
        return " ".join((self.prompt_text or self.response)[:PREVIEW_CHARS].split())


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """A word more frequent at one end of a direction than elsewhere."""

    word: str
    z: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """How a measurable property of the text goes with the scores."""

    name: str
    correlation: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """How many held-out examples a judge sorted rightly into the two ends of a direction by a label alone."""

    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def share(self) -> Interval:
        return Interval(mean=self.accuracy, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class Label(Sorted):
    """What a judge calls a direction, and what that name is worth."""

    positive: tuple[str, ...] = ()
    """Three words for the positive end, against three for the other."""
    negative: tuple[str, ...] = ()
    contrast: str = ""
    shuffled: Sorted | None = None
    """The same by the label of another direction, the control."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What one direction means: its two ends in words, texts and attributes."""

    direction: int
    unstable: bool | None = None
    """Whether other rows of the corpus may well not give it; None where that was not measured."""
    label: Label | None = None
    explained_variance: float | None = None
    variance_fraction: float | None = None
    positive: tuple[Exemplar, ...] = ()
    negative: tuple[Exemplar, ...] = ()
    keywords: dict[str, tuple[Keyword, ...]] = field(default_factory=dict)
    """`positive` and `negative` -> words."""
    attributes: tuple[Attribute, ...] = ()

    @property
    def n_supported(self) -> int:
        """Attributes whose correlation stands after Holm's correction."""
        return sum(1 for attribute in self.attributes if attribute.p_holm is not None and attribute.p_holm < ALPHA)


@dataclass(frozen=True, kw_only=True)
class LabelAreas:
    """How far each direction alone tells the rows with a human label from those without."""

    name: str
    areas: tuple[Interval, ...]
    """One per direction: the probability that a row with the label scores above one without; .5 is chance."""
    n_rows: int | None = None
    n_without: int | None = None
    joint: Interval | None = None
    """All directions together, on rows held out; None where that was not measured."""


@dataclass(frozen=True, kw_only=True)
class RowSample:
    """Columns of the corpus for a sample of its rows."""

    ids: tuple[str, ...]
    columns: dict[str, tuple[bool | int | float | str | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """All directions, interpreted."""

    directions: tuple[Direction, ...]
    n_examples: int | None = None
    by: str | None = None
    """What exemplars are ordered by: `score` or `cosine`."""
    n_attributes_tested: int | None = None
    labels: tuple[LabelAreas, ...] = ()
    sample: RowSample | None = None
