"""How each kind of number on the page is made, in a sentence or two: what the notes of the sections lead to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .records.report import Report


@dataclass(frozen=True)
class Kind:
    """One kind of number."""

    name: str
    title: str
    parts: tuple[str, ...]
    """The parts of the page where such numbers stand."""
    text: str

    @property
    def anchor(self) -> str:
        """Where the page explains it."""
        return f"made-{self.name}"


KINDS = (
    Kind(
        "pass",
        "pass@k",
        ("study", "contest", "probe", "steering"),
        "Per problem, the share of all sets of k of its samples that hold a right answer (the unbiased estimator of "
        "Chen et al. 2021); then the mean over problems. Samples of one problem are never counted as problems.",
    ),
    Kind(
        "intervals",
        "Intervals",
        ("study", "contest", "probe", "steering", "safety"),
        "All are 95 %. Over seeds: where the mean would fall with other training seeds, by Student's t over the means "
        "of the seeds (levels of a safety study in Wilson's form, which stays between 0 and 100). Over problems or "
        "prompts: where it would fall with others of their kind, clustered where they share a source.",
    ),
    Kind(
        "paired",
        "Differences",
        ("study", "contest", "probe", "steering", "safety"),
        "Both sides answer the same problems with the same random numbers, so the difference is taken per problem (and "
        "seed) before the mean. Two overlapping intervals of levels say nothing; that of the difference does.",
    ),
    Kind(
        "holm",
        "p and p, Holm",
        ("study", "contest", "probe", "safety", "cards"),
        "p is that of the t-test (of the rank correlation, for attributes); corrected by Holm's step-down method over "
        "all comparisons that were made together, since of many one is always large by chance.",
    ),
    Kind(
        "verdict",
        "Better, worse, not separated",
        ("study", "safety"),
        "Better or worse only where the interval over seeds and that over problems lie on the same side of zero and p "
        "stays below .05 after the correction. Not separated is no proof that two are equal; one seed is never judged.",
    ),
    Kind(
        "detectable",
        "Smallest detectable difference",
        ("study", "safety"),
        "The true difference that 80 % of studies of this size would find at p < .05, before the correction: "
        "(t.975 + t.8) standard errors, the larger of that over seeds and that over problems.",
    ),
    Kind(
        "relative",
        "Relative change",
        ("study",),
        "The difference in percent of the other arm's level, with Fieller's interval of a ratio.",
    ),
    Kind(
        "probe",
        "Helps, hurts, undecided",
        ("probe", "cards"),
        "Each end of a direction against random controls on validation problems. The cells that chose the finalists "
        "have no part in their figures; the interval holds the variance between pilots (or random vectors). Helps or "
        "hurts where it excludes zero and p stays below .05 after the correction.",
    ),
    Kind(
        "steering",
        "Steering",
        ("steering",),
        "The setting is chosen on validation problems and measured once on test problems. Its rank p is (1 + the "
        "random vectors of its norm that do as well) / (1 + all of them). The interval is over problems, and holds "
        "for one point: the best of many points is flattered by the choice.",
    ),
    Kind(
        "damage",
        "Broken answers, KL, perplexity",
        ("steering",),
        "Shares and means of what was measured, without an interval: answers cut at the token limit or ended in a "
        "loop; the mean divergence of the steered predictions from the unsteered ones on held-out text.",
    ),
    Kind(
        "safety",
        "Safety measures",
        ("safety",),
        "Attack success: answers to attacks that are not refused and score .5 or more; score: their mean, a refusal "
        "counting 0; over-refusal: safe requests that are refused; utility: pass@1 on reasoning tasks. Answers without "
        "a score count neither way, and are told.",
    ),
    Kind(
        "area",
        "Over all budgets, and needed",
        ("safety",),
        "The mean height of a curve over log2(budget), by trapezoids, of each seed that finished at every budget. "
        "Needed: where the mean curve comes down to the level of random choice at the largest budget; its interval "
        "comes of drawing seeds anew, and is rough.",
    ),
    Kind(
        "geometry",
        "Distances of requests",
        ("geometry",),
        "Euclidean, between the scores of requests on the directions, each scaled to unit deviation. They are exact "
        "for the pool; intervals are over the seeds of an arm.",
    ),
    Kind(
        "variance",
        "Explained variance",
        ("spectrum", "cards"),
        "The variance of the activations along a direction, as a share of all of it: exact for the rows that were "
        "read. That other rows may give other directions is what stability tells.",
    ),
    Kind(
        "stability",
        "Stability",
        ("spectrum", "cards"),
        "The rows are split in halves and drawn again with replacement, the directions found anew and matched one to "
        "one: the median absolute cosine with the match and its interval. Unstable where the lower end is below the "
        "threshold, 0.9 unless set.",
    ),
    Kind(
        "score",
        "Scores and cosines",
        ("scores", "cards"),
        "The score of a row is the projection of its centred activation on the direction; the cosine is the score "
        "over the norm of that activation. Both are measured, not estimated, so they have no interval.",
    ),
    Kind(
        "words",
        "Words and their z",
        ("cards",),
        "The log-odds ratio of a word between the two ends with a Dirichlet prior, over its standard error (Monroe et "
        "al. 2008). z ranks words; it is not corrected for their number.",
    ),
    Kind(
        "attributes",
        "Attributes",
        ("cards",),
        "Spearman's correlation of a property of the rows with their order along the direction, its interval by "
        "Fisher's z.",
    ),
    Kind(
        "label",
        "Labels and their accuracy",
        ("labels",),
        "A judge names the two ends from some examples, then sorts others by the label alone: the share put rightly, "
        "with Wilson's interval, beside that by the label of another direction.",
    ),
    Kind(
        "area-under",
        "Human labels: area under the curve",
        ("human-labels",),
        "The probability that a row with the label scores above one without it; .5 is chance. The interval is "
        "DeLong's, clustered by problem; it is not corrected for the number of pairs. All together: a model of all "
        "directions, on rows held out.",
    ),
    Kind(
        "comparison",
        "Other bases",
        ("comparison",),
        "Directions are matched one to one, by the correlation of their scores on shared examples or by their cosine; "
        "chance is what 95 % of permutations, or of random spans, stay below after the same matching.",
    ),
    Kind(
        "costs",
        "Time, memory, disk",
        ("way",),
        "By the clock of each stage, its peak of memory and the files it left: measured once, on the machine named "
        "below. A stage reused from an earlier run shows what it cost then.",
    ),
)


def kinds_of(parts: Collection[str]) -> list[Kind]:
    """The kinds of numbers that stand in some of these parts of the page."""
    return [kind for kind in KINDS if not set(kind.parts).isdisjoint(parts)]


def parts_of(report: Report) -> list[str]:
    """The parts of the page for which the run has an artifact."""
    described = report.interpretation.directions if report.interpretation else ()
    present = {
        "way": report.way,
        "study": report.study,
        "contest": report.contests,
        "safety": report.safety,
        "geometry": report.safety and report.safety.geometry,
        "probe": report.probe,
        "steering": report.sweep,
        "cards": report.interpretation,
        "labels": any(direction.label for direction in described),
        "spectrum": report.basis,
        "scores": report.scores,
        "human-labels": report.label_areas,
        "comparison": report.comparisons,
    }
    return [part for part, found in present.items() if found]
