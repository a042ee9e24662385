"""Selections by the likelihood under a model that a first selection made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planted_pool import NLL, N, candidates, likelihood, numbers
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.select import Candidates, select
from skillbasis.select.reread import FIRST
from skillbasis.select.strategy import STRATEGIES

SECOND = {"directions+reread": "directions+likelihood", "low-nll+reread": "low-nll"}


@pytest.mark.parametrize(("strategy", "first"), SECOND.items())
def test_the_lowest_on_rereading_are_taken_whatever_the_first_reading_says(strategy: str, first: str) -> None:
    nll = np.random.default_rng(7).permutation(N) / 10
    other = next(name for name in SECOND.values() if name != first)
    known = replace(candidates(), reread={first: likelihood(nll), other: likelihood(-nll)})
    rows = select(known, strategy, 9, seed=0)
    assert numbers(rows) == np.argsort(nll)[:9].tolist()
    assert [row.score for row in rows] == pytest.approx(sorted(nll)[:9])
    assert {row.reason for row in rows} == {f"lowest mean NLL under the model made by {first}"}
    assert select(replace(known, likelihood=None), strategy, 9, seed=4) == rows


def test_ties_go_to_the_first_row_and_unread_rows_come_last() -> None:
    nll = np.zeros(N)
    nll[3] = np.nan
    known = replace(candidates(), reread={"low-nll": likelihood(nll)})
    rows = select(known, "low-nll+reread", N, seed=0)
    assert numbers(rows) == [0, 1, 2, *range(4, N), 3]
    assert rows[-1].score == np.inf


@pytest.mark.parametrize(("strategy", "first"), SECOND.items())
def test_the_pool_must_have_been_read_again_after_that_selection(strategy: str, first: str) -> None:
    others = {name: likelihood() for name in SECOND.values() if name != first}
    with pytest.raises(
        UsageError, match=f"pool read again by a model fine-tuned on a selection by {first}$".replace("+", r"\+")
    ):
        select(replace(candidates(), reread=others), strategy, 5, seed=0)


def test_each_need_names_the_selection_that_comes_first() -> None:
    needs = {name: STRATEGIES[name].needs for name in SECOND}
    assert needs == {"directions+reread": ("reread along directions",), "low-nll+reread": ("reread by likelihood",)}
    assert {name: FIRST[needs[name][0]] for name in SECOND} == SECOND


def test_rereadings_are_brought_into_corpus_order() -> None:
    from planted_pool import IDS, corpus

    turned = replace(likelihood(), ids=IDS[::-1], mean_nll=NLL[::-1])
    known = Candidates.of(corpus(), reread={"low-nll": turned})
    assert numbers(select(known, "low-nll+reread", 3, seed=0)) == [30, 31, 32]
    short = replace(turned, ids=IDS[:0:-1], mean_nll=NLL[:0:-1])
    with pytest.raises(ArtifactError, match="1 of 60 rows have no likelihood, the first is 'r0'"):
        Candidates.of(corpus(), reread={"low-nll": short})
