"""Labels of directions: a judge is shown both ends of one and says what sets them apart, three words against three."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ..evaluate.judge import Judge, Question, Verdict
from ..evaluate.judge.material import shortened

if TYPE_CHECKING:
    from typing import Self

CHARACTERS = 1_200
"""Of each text so many are shown to the judge: twenty of them are about 7,000 tokens."""
MAX_WORD, MAX_AXIS, MAX_CONTRAST = 24, 60, 400
"""Longest word, axis and contrast of a label, in characters."""
MAX_AXES = 5
_WORD = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_GROUP = r"(?:\bthe )?\bgroup {}\b"
_INSTRUCTIONS = f"""You compare two groups of texts, group A and group B: problems with their solutions, or what is \
there of them. They were put into groups by a measurement that has no name yet. Find out what it measures: what most \
texts of one group have and most of the other lack. It may be their subject, their notation, their length, their \
difficulty, or the way in which they work, check, guess or explain.

Give
* contrast: one sentence of at most {MAX_CONTRAST} characters that tells the groups apart and calls them "group A" and \
"group B";
* axes: 1 to {MAX_AXES} short names of the properties in which they differ, the strongest first;
* words_a: exactly three single words, at most {MAX_WORD} letters each, that fit the texts of group A and not those of \
group B;
* words_b: the same for group B.
Judge by what the texts show, not by the order in which they come."""


def _on_one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it must be plain text on one line")
    if not text.strip():
        raise ValueError("it must not be empty")
    return text.strip()


def _a_word(text: str) -> str:
    word = _on_one_line(text).lower()
    if len(word) > MAX_WORD or not _WORD.fullmatch(word):
        raise ValueError(f"each must be a single word of at most {MAX_WORD} letters")
    return word


def _an_axis(text: str) -> str:
    axis = _on_one_line(text)
    if len(axis) > MAX_AXIS:
        raise ValueError(f"each must have at most {MAX_AXIS} characters")
    return axis


_ThreeWords = Annotated[list[Annotated[str, AfterValidator(_a_word)]], Field(min_length=3, max_length=3)]


class Contrast(BaseModel):
    """What sets group A and group B apart, as a judge answers it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    contrast: str
    """One sentence that names both groups."""
    axes: Annotated[list[Annotated[str, AfterValidator(_an_axis)]], Field(min_length=1, max_length=MAX_AXES)]
    words_a: _ThreeWords
    words_b: _ThreeWords

    @field_validator("contrast")
    @classmethod
    def _names_both(cls, text: str) -> str:
        text = _on_one_line(text)
        if len(text) > MAX_CONTRAST:
            raise ValueError(f"it must have at most {MAX_CONTRAST} characters")
        if not all(re.search(_GROUP.format(group), text, re.IGNORECASE) for group in "AB"):
            raise ValueError('it must call the groups "group A" and "group B"')
        return text

    @model_validator(mode="after")
    def _words_differ(self) -> Self:
        if len({*self.words_a, *self.words_b}) < 6:
            raise ValueError("the six words must differ")
        return self


@dataclass(frozen=True)
class Label:
    """What a judge calls a direction."""

    direction: int
    positive: tuple[str, ...]
    """Three words for the + end."""
    negative: tuple[str, ...]
    """Three words for the - end."""
    contrast: str
    """A sentence that calls them `the + end` and `the - end`."""
    axes: tuple[str, ...]
    """The properties in which the ends differ, the strongest first."""

    def of_groups(self, *, positive_is_a: bool) -> str:
        """The label for somebody who sorts into group A and group B: the words and the contrast, no more."""
        of_a, of_b = (self.positive, self.negative) if positive_is_a else (self.negative, self.positive)
        plus, minus = ("A", "B") if positive_is_a else ("B", "A")
        contrast = re.sub(r"\bthe \+ end\b", f"group {plus}", self.contrast, flags=re.IGNORECASE)
        contrast = re.sub(r"\bthe - end\b", f"group {minus}", contrast, flags=re.IGNORECASE)
        return f"Group A: {', '.join(of_a)}\nGroup B: {', '.join(of_b)}\n{contrast}"


@dataclass(frozen=True)
class Ends:
    """The exemplars of a direction, as texts."""

    direction: int
    positive: Sequence[str]
    negative: Sequence[str]


def ask_labels(judge: Judge, ends: Sequence[Ends], seed: int = 0) -> Generator[tuple[int, Label | str]]:
    """Asks for the label of each direction.

    A coin of its own per direction, thrown by the seed, says which end is called group A and comes first, so that
    neither place nor name of a group goes with the sign.

    Args:
        ends: exemplars, texts as they are to be shown (see `shown_text`).
    Returns: (direction, its label, or why there is none) as they are answered.
    Raises: SkillbasisError: see `Judge.ask`; what was answered is yielded first.
    """
    swapped = [not coin(seed, "label", end.direction) for end in ends]
    questions = [_question(end, swap) for end, swap in zip(ends, swapped, strict=True)]
    for number, verdict in judge.ask(questions):
        yield ends[number].direction, _label(ends[number].direction, verdict, swapped[number])


def coin(*thrown_by: object) -> bool:
    """A fair coin that always falls the same way for the same things."""
    return bool(hashlib.sha256(repr(thrown_by).encode("utf-8", "replace")).digest()[0] & 1)


def shown_text(prompt: str, response: str, characters: int = CHARACTERS) -> str:
    """An example as the judge sees it: the problem, at most a third where there is a solution too, and the solution."""
    if not response.strip():
        return f"Problem:\n{shortened(prompt, characters)}"
    if not prompt.strip():
        return f"Solution:\n{shortened(response, characters)}"
    for_prompt = max(characters // 3, characters - len(response))
    prompt = shortened(prompt, for_prompt)
    return f"Problem:\n{prompt}\n\nSolution:\n{shortened(response, max(characters - len(prompt), characters // 3))}"


def _question(ends: Ends, swapped: bool) -> Question[Contrast]:
    groups: Mapping[str, Sequence[str]] = {
        "A": ends.negative if swapped else ends.positive,
        "B": ends.positive if swapped else ends.negative,
    }
    material = [
        (f"group {group}, text {number}", text)
        for group, texts in groups.items()
        for number, text in enumerate(texts, start=1)
    ]
    return Question(_INSTRUCTIONS, material, "What sets group A and group B apart?", Contrast)


def _label(direction: int, verdict: Verdict[Contrast], swapped: bool) -> Label | str:
    if verdict.value is None:
        return str(verdict.reason)
    found = verdict.value
    contrast = found.contrast
    for group, end in {"A": "- end", "B": "+ end"}.items() if swapped else {"A": "+ end", "B": "- end"}.items():
        contrast = re.sub(
            _GROUP.format(group),
            lambda match, end=end: f"{'The' if match.group()[0].isupper() else 'the'} {end}",  # type: ignore[misc]
            contrast,
            flags=re.IGNORECASE,
        )
    words_a, words_b = tuple(found.words_a), tuple(found.words_b)
    positive, negative = (words_b, words_a) if swapped else (words_a, words_b)
    return Label(direction, positive, negative, contrast, tuple(found.axes))
