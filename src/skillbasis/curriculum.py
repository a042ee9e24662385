"""The curriculum in rounds: take rows where the model is weak, train on them, look where it is weak now, go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from .artifact import building, is_current, read_json, remove_tree, write_json
from .basis import SkillBasis
from .cells import CellSettings
from .corpus import Corpus, SelectedRow, training_rows
from .errors import UsageError
from .evaluate.tasks import Task
from .evidence import EvidenceSettings, kept_validation
from .lm import LanguageModel
from .select import Candidates
from .select.directions import quotas
from .select.strategy import Unit
from .select.weakness import weakness_round
from .train.sft import fine_tuned

KIND = "curriculum"
Rounds = Callable[[Candidates, int, int, Unit], list[SelectedRow]]
"""(candidates, budget, seed, unit) -> rows."""


def in_rounds(
    path: Path,
    lm: LanguageModel,
    basis: SkillBasis,
    corpus: Corpus,
    validation: Task,
    cells: CellSettings,
    evidence: EvidenceSettings,
) -> Rounds:
    """Makes the chooser of `weakness-rounds`: before each round after the first, the base is fine-tuned on all rows
    taken so far and answers the validation problems anew; the base reads those answers, so that the directions stay.
    The rounds (as many as the selection settings say) share the budget equally.

    Args:
        path: a directory; each seed is an artifact below it, in which the answers of finished rounds are kept.
        cells: how to train, as the study does.
    """

    def choose(candidates: Candidates, budget: int, seed: int, unit: Unit) -> list[SelectedRow]:
        n_rounds = candidates.settings.rounds
        if unit != "rows":
            raise UsageError("weakness-rounds shares its budget among rounds in rows; give the budget in rows")
        if budget < n_rounds:
            raise UsageError(f"a budget of {budget} rows is less than {n_rounds} rounds; raise it")
        out = path / f"{budget}-{seed}"
        inputs = {
            "weights": lm.weights_fingerprint,
            "corpus": corpus.fingerprint,
            "candidates": replace(candidates, reference=None).fingerprints,  # what another arm matches is not heeded
            "selection": asdict(candidates.settings),
            "task": validation.fingerprint,
            "training": asdict(cells.training),
            "trainer": cells.trainer,
            "sampling": asdict(evidence.sampling),
            "budget": budget,
            "seed": seed,
        }
        if not is_current(out, KIND, inputs):
            with building(out, KIND, inputs, {}) as work:
                rng, taken = np.random.default_rng(seed), list[SelectedRow]()
                for number, quota in enumerate(quotas(budget, n_rounds)):
                    if number:
                        rows, training = training_rows(corpus, taken), cells.training.with_seed(seed)
                        tuned, _ = fine_tuned(lm, rows, training, work / f"model-{number}", trainer=cells.trainer)
                        answers, _ = kept_validation(
                            work / f"answers-{number}", tuned, validation, evidence, basis=basis, reader=lm
                        )
                        candidates = replace(candidates, validation=answers)
                    new = weakness_round(candidates, quota, rng, [row.id for row in taken])
                    taken += [
                        replace(row, rank=len(taken) + row.rank, reason=f"round {number + 1}: {row.reason}")
                        for row in new
                    ]
                    remove_tree(work / f"model-{number}")
                write_json(work / "rows.json", [asdict(row) for row in taken])
        return [SelectedRow(**row) for row in read_json(out / "rows.json")]

    return choose
