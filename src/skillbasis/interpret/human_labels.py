"""What people say of rows, read from a corpus: labels, which rows are of one problem, which answers are right."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CorpusError, UsageError, nearest
from .attributes import prompt_text

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = "labels"
"""Name of the corpus' own column of labels."""
MAX_LABELS = 100
"""Only this many labels of a column, the most frequent, are looked at."""


@dataclass(frozen=True)
class LabelColumn:
    """One column of labels over n rows."""

    name: str
    labels: tuple[str, ...]
    """(L,) its values, sorted; at most `MAX_LABELS`."""
    has: NDArray[np.bool_]
    """(n, L), which rows carry which."""
    known: NDArray[np.bool_]
    """(n,), which rows have a value in this column; of the others nothing is known, so they are no counterexamples."""
    left_out: dict[str, str]
    """Labels that are not looked at by themselves, with the reason: rare ones, which `labels` lacks, and `opposite`."""
    opposite: str | None = None
    """Of two labels, the one whose rows are those without the other; it is in `labels`."""

    @property
    def tested(self) -> list[str]:
        """Labels that are looked at by themselves."""
        return [label for label in self.labels if label != self.opposite]

    @property
    def single(self) -> bool:
        """Whether no row carries more than one label."""
        return bool((self.has.sum(axis=1) <= 1).all())


class RowColumns:
    """The columns of rows of a corpus, those of `extra` unpacked once."""

    def __init__(self, rows: Dataset) -> None:
        self._labels: list[list[str]] = rows["labels"][:]
        self.prompts: list[str] = [prompt_text(messages) for messages in rows["prompt"]]
        self.responses: list[str] = [text or "" for text in rows["response"]]
        self._extra = [_extra(row_id, text) for row_id, text in zip(rows["id"], rows["extra"], strict=True)]

    def __len__(self) -> int:
        return len(self._extra)

    @property
    def names(self) -> list[str]:
        """Columns that could hold labels or groups: `labels` where a row has some, and those of `extra`."""
        own = [LABELS] if any(self._labels) else []
        return own + sorted({name for extra in self._extra for name in extra})

    def values(self, name: str) -> list[Any]:
        """(n,) values of a column; None where a row has none. Raises: UsageError: there is no such column."""
        if name not in self.names:
            if name == LABELS:
                raise UsageError(
                    f"no scored row of the corpus has labels; name a column with --label-column: {self._listed()}"
                )
            raise UsageError(
                f"the scored rows have no column {name!r}{nearest(name, self.names)}; there are {self._listed()}"
            )
        if name == LABELS:
            return [labels or None for labels in self._labels]
        return [extra.get(name) for extra in self._extra]

    def label_column(self, name: str) -> LabelColumn:
        """Reads a column as labels: text, whole numbers, true and false, or lists of them.

        Of two values the second (of true and false: false) is the opposite of the first and is not looked at by itself.

        Raises: UsageError: there is no such column. CorpusError: a value is no label.
        """
        carried = [None if value is None else _label_texts(value, name) for value in self.values(name)]
        known = np.array([bool(labels) for labels in carried])
        frequency = Counter(label for labels in carried if labels for label in labels)
        ordered = sorted(frequency, key=lambda label: (-frequency[label], label))
        left_out = dict.fromkeys(ordered[MAX_LABELS:], f"beyond the {MAX_LABELS} most frequent labels")
        kept = sorted(ordered[:MAX_LABELS])
        opposite = None
        if len(kept) == 2 and all(len(labels) == 1 for labels in carried if labels):
            first, opposite = ("true", "false") if kept == ["false", "true"] else kept
            left_out[opposite] = f"the opposite of {first!r}"
        place = {label: i for i, label in enumerate(kept)}
        has = np.zeros((len(carried), len(kept)), dtype=bool)
        for row, labels in enumerate(carried):
            for label in labels or ():
                if label in place:
                    has[row, place[label]] = True
        return LabelColumn(name, tuple(kept), has, known, left_out, opposite)

    def groups(self, name: str | None) -> list[str]:
        """(n,) which rows belong together: by a column, or by the text of the prompt where none is named.

        Raises: UsageError: there is no such column. CorpusError: a row has no value there.
        """
        if name is None:
            return self.prompts
        values = self.values(name)
        n_missing = sum(value is None for value in values)
        if n_missing:
            raise CorpusError(
                f"{n_missing:,} of {len(values):,} scored rows have no value in {name!r}, so nobody knows what they "
                "belong with; fill it in, or name another --group-column"
            )
        return [json.dumps(value, sort_keys=True) for value in values]

    def correct(self, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """((n,) whether the row's answer is right, (n,) whether that is known).

        Raises: UsageError: there is no such column. CorpusError: a value is neither true nor false, 1 nor 0.
        """
        values = self.values(name)
        for value in values:
            if value is not None and not (isinstance(value, bool | int | float) and value in (0, 1)):
                raise CorpusError(
                    f"column {name!r} holds {value!r}, which is neither true nor false; name another column"
                )
        known = np.array([value is not None for value in values])
        return np.array([value is not None and bool(value) for value in values]), known

    def _listed(self) -> str:
        return ", ".join(name for name in self.names if name != LABELS) or "none"


def together(columns: Sequence[LabelColumn]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """((n, all labels), (n,) rows that have a value in every column)."""
    return np.hstack([column.has for column in columns]), np.all([column.known for column in columns], axis=0)


def _extra(row_id: str, text: str) -> Mapping[str, Any]:
    try:
        extra = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"the extra columns of row {row_id!r} are not JSON ({error}); read the corpus again"
        ) from None
    if not isinstance(extra, dict):
        raise CorpusError(f"the extra columns of row {row_id!r} are not a JSON object; read the corpus again")
    return extra


def _label_texts(value: Any, name: str) -> list[str]:
    """The labels of one row, each once."""
    values = value if isinstance(value, list) else [value]
    for single in values:
        whole = isinstance(single, str | int) or (isinstance(single, float) and single.is_integer())
        if not whole:
            raise CorpusError(
                f"column {name!r} holds {single!r}, which is no label (text, a whole number, true or false); "
                "name another --label-column"
            )
    texts = [str(v).lower() if isinstance(v, bool) else str(int(v)) if isinstance(v, float) else str(v) for v in values]
    return list(dict.fromkeys(texts))
