"""Words that tell two groups of texts apart: log-odds ratios with an informative Dirichlet prior."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = "<num>"

# Chinese and Japanese write no spaces between words: each character is a token of its own.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(
    rf"""
      (?P<command>\\(?:[A-Za-z]+|[()\[\]]))               # \frac, \boxed, and the formula marks \( \) \[ \]
    | (?P<number>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?)
    | [{_UNSPACED}]
    | [^\W\d_{_UNSPACED}]+(?:['\u2019][^\W\d_]+)*         # words, don't
    | [=!<>:]=|[-=]>|\*\*|<<|>>|&&|\|\||[-+*/=<>^%!|&~≤≥≠≈≡×÷±−·→⇒√∑∏∫∈]
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Keyword:
    """A word and how strongly it tells group a from group b."""

    word: str
    """The token: a lower-cased word, a LaTeX command, an operator, or `<num>` for any number."""
    z: float
    """Log-odds ratio over its standard error; positive where the word is typical of group a."""
    count_a: int
    """How often it occurs in group a."""
    count_b: int
    """How often it occurs in group b."""


def tokens(text: str) -> list[str]:
    """Splits a text into words, LaTeX commands, operators and masked numbers, in order; punctuation is dropped.

    Words are lower-cased. LaTeX commands keep their case, because \\Delta and \\delta are two things.
    """
    found = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        found.append(NUMBER if kind == "number" else match.group() if kind == "command" else match.group().lower())
    return found


def token_counts(texts: Iterable[str]) -> Counter[str]:
    """Counts the tokens of all texts together."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokens(text))
    return counts


def keywords(
    texts_a: Iterable[str],
    texts_b: Iterable[str],
    background: Iterable[str] | Counter[str],
    n: int = 12,
    *,
    min_texts: int = 3,
    prior_tokens: float | None = None,
) -> tuple[list[Keyword], list[Keyword]]:
    """Finds the words most typical of group a against group b, and the reverse.

    Args:
        texts_a: one group of texts.
        texts_b: the other group.
        background: texts whose word shares are the prior, usually the whole corpus; or their `token_counts`, to
            count them once for many comparisons.
        n: how many words to return for each group, at most.
        min_texts: a word counts for a group only when at least this many of its texts have it (fewer in a smaller
            group), so that one long text which repeats a word does not speak for the group.
        prior_tokens: weight of the prior in tokens (alpha_0); by default the mean size of the two groups. The raw
            background counts would drown groups that are a few per cent of the corpus.
    Returns: (words of a, words of b), each strongest first (ties by word); z is positive for words of a and negative
        for words of b. Empty lists where a group has no tokens or there is only one word: nothing can be compared.
        z treats the tokens of a text as independent and is not corrected for the size of the vocabulary: it ranks.
    Cost: one pass over the texts; memory of the vocabulary.
    Source: Monroe, Colaresi & Quinn 2008, "Fightin' Words", Political Analysis 16(4), section 3.4-3.5, equation 22
        with the log-odds ratio and the variance it rests on. Departure: background counts get one added to each word,
        so that a word which the background lacks has a prior too.
    """
    counts_a, texts_with_a, n_texts_a = _count(texts_a)
    counts_b, texts_with_b, n_texts_b = _count(texts_b)
    prior = background if isinstance(background, Counter) else token_counts(background)
    total_a, total_b = counts_a.total(), counts_b.total()
    vocabulary = sorted(prior.keys() | counts_a.keys() | counts_b.keys())
    if total_a == 0 or total_b == 0 or len(vocabulary) < 2:
        return [], []

    alpha_0 = (total_a + total_b) / 2 if prior_tokens is None else prior_tokens
    per_count = alpha_0 / (prior.total() + len(vocabulary))
    needed_a, needed_b = min(min_texts, n_texts_a), min(min_texts, n_texts_b)
    of_a, of_b = [], []
    for word in vocabulary:
        enough_a, enough_b = texts_with_a[word] >= needed_a, texts_with_b[word] >= needed_b
        if not (enough_a or enough_b):
            continue
        alpha = (prior[word] + 1) * per_count
        in_a, in_b = counts_a[word] + alpha, counts_b[word] + alpha
        difference = math.log(in_a / (total_a + alpha_0 - in_a)) - math.log(in_b / (total_b + alpha_0 - in_b))
        z = difference / math.sqrt(1 / in_a + 1 / in_b)
        keyword = Keyword(word, z, counts_a[word], counts_b[word])
        if z > 0 and enough_a:
            of_a.append(keyword)
        elif z < 0 and enough_b:
            of_b.append(keyword)
    # The vocabulary is sorted and sorting is stable: ties stay in order of the word.
    return sorted(of_a, key=lambda k: -k.z)[:n], sorted(of_b, key=lambda k: k.z)[:n]


def _count(texts: Iterable[str]) -> tuple[Counter[str], Counter[str], int]:
    """Returns how often each token occurs, in how many texts it occurs, and the number of texts."""
    counts: Counter[str] = Counter()
    texts_with: Counter[str] = Counter()
    n_texts = 0
    for text in texts:
        found = tokens(text)
        counts.update(found)
        texts_with.update(set(found))
        n_texts += 1
    return counts, texts_with, n_texts
