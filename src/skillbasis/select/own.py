"""The model's own correct answers in place of the responses of the corpus: rejection-sampling fine-tuning."""

from __future__ import annotations

import numpy as np

from ..corpus import SelectedRow
from .candidates import Candidates
from .shortage import TooFewRows


def own_correct_answers(candidates: Candidates, budget: int, rng: np.random.Generator) -> list[SelectedRow]:
    """Draws rows that the model solved, and of each one of its different correct answers, all uniformly.

    Raises: UsageError: the model has not answered. TooFewRows: it solved fewer rows than the budget.
    Source: Yuan et al., arXiv 2308.01825, which keep all different correct answers of a problem; here one, so that
        the budget is of different rows.
    """
    answers = candidates.known_own_answers
    n_different = np.fromiter(map(len, answers.correct), dtype=np.int64, count=len(answers.correct))
    solved = np.flatnonzero(n_different)
    if budget > len(solved):
        n_asked = int((answers.n_answers > 0).sum())
        raise TooFewRows(
            f"the model solved {len(solved)} of the {n_asked} rows that have a reference answer, fewer than the budget "
            f"of {budget}; sample more answers of each row, or choose a smaller budget",
            len(solved),
        )
    drawn = rng.permutation(solved)[:budget]
    which = (rng.random(budget) * n_different[drawn]).astype(np.int64)
    return [
        SelectedRow(
            candidates.ids[i],
            rank,
            None,
            reason="a correct answer of the model's own",
            response=answers.correct[i][answer],
        )
        for rank, (i, answer) in enumerate(zip(drawn, which, strict=True), 1)
    ]
