"""Eight families of small arithmetic problems with exact answers, and the split every problem belongs to.

A problem is fixed by its family and numbers; its wording and the way it is solved are chosen apart
(`solutions.py`). The split is a hash of (family, numbers, answer), so that pretraining, pool, validation and
test share no problem whatever the seed, the wording or the number of rows drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["pretrain", "pool", "validation", "test"]
Register = Literal["symbolic", "verbal"]

# Upper bounds (exclusive) of a hash in 0..999; the sizes follow how many distinct problems each split needs.
_SPLIT_BOUNDS: dict[Split, tuple[int, int]] = {
    "pretrain": (0, 760),
    "pool": (760, 920),
    "validation": (920, 955),
    "test": (955, 1000),
}

NAMES = ("Mia", "Tom", "Ana", "Ben")
ITEMS = ("coins", "pens", "nuts", "cards")
UNITS = (
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("feet", "inches", 12),
    ("weeks", "days", 7),
    ("minutes", "seconds", 60),
    ("dozens", "eggs", 12),
)


@dataclass(frozen=True)
class Problem:
    """One problem with its exact answer and the facts that solutions are written from."""

    family: str
    """Name of the family, one of `FAMILIES`."""
    numbers: tuple[int, ...]
    """The numbers that fix the problem within its family."""
    question: str
    """The text shown to the model."""
    answer: str
    """The exact answer, as it stands in `\\boxed{}`."""
    steps: dict[Register, str]
    """The worked steps, symbolic and verbal, without the final answer."""
    check: dict[Register, str]
    """A verification of the answer, symbolic and verbal."""

    @property
    def key(self) -> str:
        """What identifies the problem whatever its wording."""
        return f"{self.family}:{','.join(map(str, self.numbers))}={self.answer}"

    @property
    def split(self) -> Split:
        bucket = int.from_bytes(hashlib.blake2b(self.key.encode(), digest_size=8).digest(), "big") % 1000
        for split, (low, high) in _SPLIT_BOUNDS.items():
            if low <= bucket < high:
                return split
        raise AssertionError(f"split bounds do not cover {bucket}")


def _addition(rng: Random) -> Problem:
    a, b = rng.randrange(12, 400), rng.randrange(12, 400)
    places = ("Ones", "Tens", "Hundreds")
    symbolic, verbal = [], []
    carry, i = 0, 0
    while 10**i <= max(a, b):
        digits = [a // 10**i % 10, b // 10**i % 10] + ([carry] if carry else [])
        total = sum(digits)
        symbolic.append(f"{'+'.join(map(str, digits))}={total} keep {total % 10} carry {total // 10}")
        verbal.append(f"{places[i]}: {' and '.join(map(str, digits))} make {total}.")
        carry, i = total // 10, i + 1
    question = rng.choice((f"{a}+{b}=?", f"Add {a} and {b}.", f"What is the sum of {a} and {b}?"))
    return Problem(
        "addition",
        (a, b),
        question,
        str(a + b),
        {"symbolic": ", ".join(symbolic) + ".", "verbal": " ".join(verbal)},
        {"symbolic": f"{a + b}-{b}={a}.", "verbal": f"{a + b} minus {b} is {a}."},
    )


def _last_digit(rng: Random) -> Problem:
    a, b, c = (rng.randrange(12, 100) for _ in range(3))
    x, y, z = a % 10, b % 10, c % 10
    first, second = x * y, (x * y % 10) * z
    back, front = z * y, (z * y % 10) * x
    question = rng.choice((f"Last digit of {a}*{b}*{c}?", f"In which digit does {a} times {b} times {c} end?"))
    return Problem(
        "last_digit",
        (a, b, c),
        question,
        str(second % 10),
        {
            "symbolic": f"{x}*{y}={first}, {first % 10}*{z}={second}.",
            "verbal": f"{x} times {y} is {first} and ends in {first % 10}. "
            f"{first % 10} times {z} is {second} and ends in {second % 10}.",
        },
        {
            "symbolic": f"{z}*{y}={back}, {back % 10}*{x}={front}.",
            "verbal": f"{z} times {y} is {back} and {back % 10} times {x} is {front}.",
        },
    )


def _linear(rng: Random) -> Problem:
    a, x, b = rng.randrange(2, 10), rng.randrange(2, 13), rng.randrange(1, 30)
    c = a * x + b
    question = rng.choice((f"Solve {a}x+{b}={c}.", f"{a} times x plus {b} is {c}. What is x?"))
    return Problem(
        "linear",
        (a, b, c),
        question,
        str(x),
        {
            "symbolic": f"{c}-{b}={a * x}, {a * x}/{a}={x}.",
            "verbal": f"Take {b} from {c} to get {a * x}. Divide {a * x} by {a} to get {x}.",
        },
        {"symbolic": f"{a}*{x}={a * x}, {a * x}+{b}={c}.", "verbal": f"{a} times {x} plus {b} is {c}."},
    )


def _remainder(rng: Random) -> Problem:
    a, m = rng.randrange(20, 200), rng.randrange(3, 10)
    q, r = divmod(a, m)
    question = rng.choice((f"{a} mod {m}=?", f"What is left when {a} is divided by {m}?"))
    symbolic, verbal = [], []
    heads = [a] if a < 100 else [a // 10, a // 10 % m * 10 + a % 10]  # written division, digit by digit
    for head in heads:
        symbolic.append(f"{head}-{head // m * m}={head % m}")
        verbal.append(f"{head // m * m} from {head} leaves {head % m}.")
    return Problem(
        "remainder",
        (a, m),
        question,
        str(r),
        {"symbolic": ", ".join(symbolic) + ".", "verbal": " ".join(verbal)},
        {"symbolic": f"{m}*{q}={m * q}, {m * q}+{r}={a}.", "verbal": f"{m * q} plus {r} is {a}."},
    )


def _units(rng: Random) -> Problem:
    kind = rng.randrange(len(UNITS))
    large, small, factor = UNITS[kind]
    a, b = rng.randrange(2, 10), rng.randrange(1, factor)
    question = rng.choice(
        (f"{a} {large} {b} {small} in {small}?", f"How many {small} are {a} {large} and {b} {small}?")
    )
    return Problem(
        "units",
        (kind, a, b),
        question,
        str(a * factor + b),
        {
            "symbolic": f"{a}*{factor}={a * factor}, {a * factor}+{b}={a * factor + b}.",
            "verbal": f"{a} {large} are {a * factor} {small}. {a * factor} plus {b} is {a * factor + b}.",
        },
        {
            "symbolic": f"{a * factor + b}-{b}={a * factor}, {a * factor}/{factor}={a}.",
            "verbal": f"{a * factor + b} minus {b} is {a * factor}.",
        },
    )


def _kth_smallest(rng: Random) -> Problem:
    values = rng.sample(range(10, 100), rng.randrange(4, 6))
    k = rng.randrange(2, len(values))
    ordered = sorted(values)
    listed, arranged = ", ".join(map(str, values)), ", ".join(map(str, ordered))
    question = rng.choice((f"Number {k} from below in {listed}?", f"Which is number {k} in order of size: {listed}?"))
    below = ", ".join(map(str, ordered[: k - 1]))
    return Problem(
        "kth_smallest",
        (k, *values),
        question,
        str(ordered[k - 1]),
        {
            "symbolic": f"{arranged}.",
            "verbal": f"In order of size they are {arranged}. Number {k} is {ordered[k - 1]}.",
        },
        {"symbolic": f"{below}<{ordered[k - 1]}.", "verbal": f"Below {ordered[k - 1]} are {below}."},
    )


def _word_problem(rng: Random) -> Problem:
    bags, each, other = rng.randrange(2, 10), rng.randrange(2, 13), rng.randrange(1, 21)
    gains = rng.random() < 0.5 or other >= bags * each
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    total = bags * each
    answer = total + other if gains else total - other
    sign, verb, word = ("+", "finds", "plus") if gains else ("-", "loses", "minus")
    back, back_word = ("-", "minus") if gains else ("+", "plus")
    question = rng.choice(
        (
            f"{name} has {bags} bags of {each} {item} and {verb} {other}. How many {item}?",
            f"{bags} bags hold {each} {item} each. {name} {verb} {other}. How many are there?",
        )
    )
    return Problem(
        "word_problem",
        (bags, each, other, int(gains)),
        question,
        str(answer),
        {
            "symbolic": f"{bags}*{each}={total}, {total}{sign}{other}={answer}.",
            "verbal": f"{bags} bags are {total} {item}. {total} {word} {other} is {answer}.",
        },
        {
            "symbolic": f"{answer}{back}{other}={total}, {total}/{bags}={each}.",
            "verbal": f"{answer} {back_word} {other} is {total}.",
        },
    )


def _counting(rng: Random) -> Problem:
    bound = rng.randrange(2, 9) * 10
    values = rng.sample([n for n in range(10, 100) if n != bound], rng.randrange(4, 7))
    listed = ", ".join(map(str, values))
    seen, symbolic, verbal = 0, [], []
    for value in values:
        seen += value > bound
        symbolic.append(f"{value}{'>' if value > bound else '<'}{bound}:{seen}")
        verbal.append(f"{value} {'counts' if value > bound else 'does not'}: {seen}.")
    question = rng.choice((f"Count above {bound}: {listed}.", f"How many of {listed} are more than {bound}?"))
    rest = len(values) - seen
    return Problem(
        "counting",
        (bound, *values),
        question,
        str(seen),
        {"symbolic": ", ".join(symbolic) + ".", "verbal": " ".join(verbal)},
        {"symbolic": f"{len(values)}-{rest}={seen}.", "verbal": f"Of {len(values)} numbers {rest} do not count."},
    )


FAMILIES: dict[str, Callable[[Random], Problem]] = {
    "addition": _addition,
    "last_digit": _last_digit,
    "linear": _linear,
    "remainder": _remainder,
    "units": _units,
    "kth_smallest": _kth_smallest,
    "word_problem": _word_problem,
    "counting": _counting,
}


def draw_problem(rng: Random, split: Split, family: str | None = None) -> Problem:
    """Draws one problem of a split, of a given family or of a random one."""
    make = FAMILIES[family or rng.choice(tuple(FAMILIES))]
    while True:  # every split holds at least 3.5 % of each family's problems
        problem = make(rng)
        if problem.split == split:
            return problem


def distinct_problems(n: int, split: Split, seed: int) -> list[Problem]:
    """Draws n distinct problems of a split, the families in turn and equally often."""
    rng = Random(f"{split}:{seed}")
    families = tuple(FAMILIES)
    seen: set[str] = set()
    problems: list[Problem] = []
    while len(problems) < n:
        problem = draw_problem(rng, split, families[len(problems) % len(families)])
        if problem.key not in seen:
            seen.add(problem.key)
            problems.append(problem)
    return problems
