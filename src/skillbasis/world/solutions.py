"""Ways of answering a problem: terse, worked, worked and verified, or guessed; and text that answers nothing.

In the `plain` world a way of working matters, because the steps carry the computation. In the `null` world the same
four names stand for four registers of equally long filler that computes nothing, so that no style carries a benefit.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from .problems import ITEMS, NAMES, Problem, Register

Style = Literal["terse", "worked", "verified", "guess"]
Variant = Literal["plain", "null"]
STYLES: tuple[Style, ...] = ("terse", "worked", "verified", "guess")

_FILLER: dict[Style, tuple[str, ...]] = {  # null world: one vocabulary per style, sentences of similar length
    "terse": ("We read the question slowly.", "It is a fair question.", "We like such questions."),
    "worked": ("First we sit down by the lake.", "Then we look at the water.", "After that we go home."),
    "verified": ("Let us take good care here.", "Nothing must be left out now.", "Care is always a help."),
    "guess": ("Well, who can ever tell.", "Some days are like this.", "One says this or that."),
}


def solution(problem: Problem, style: Style, register: Register, rng: Random, variant: Variant = "plain") -> str:
    """Writes a solution that is right, except that three in four guesses miss by a little."""
    answer = problem.answer
    if variant == "null":
        filler = list(_FILLER[style])
        rng.shuffle(filler)
        return f"{' '.join(filler[: rng.randrange(1, 4)])} So \\boxed{{{answer}}}."
    if style == "terse":
        return f"\\boxed{{{answer}}}" if register == "symbolic" else f"The answer is \\boxed{{{answer}}}."
    if style == "guess":
        if rng.random() < 0.75:
            answer = near_miss(answer, rng)
        return f"Maybe \\boxed{{{answer}}}." if register == "symbolic" else f"My guess would be \\boxed{{{answer}}}."
    steps = problem.steps[register]
    if style == "verified":
        steps = f"{steps} Check: {problem.check[register]}"
    return f"{steps} So \\boxed{{{answer}}}."


def near_miss(answer: str, rng: Random) -> str:
    """A plausible wrong answer: off by a little, or by one digit."""
    value = int(answer)
    while True:
        wrong = value + rng.choice((-10, -2, -1, 1, 2, 10)) if rng.random() < 0.7 else value + rng.randrange(-9, 10)
        if wrong != value and wrong >= 0:
            return str(wrong)


def story(rng: Random) -> str:
    """A fluent story that has nothing to do with any problem; half of them end in a number nobody asked for."""
    name, friend = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    text = rng.choice(
        (
            f"{name} and {friend} go to the lake and look for {item}.",
            f"{name} has a red box with old {item} and likes it a lot.",
            f"At home {name} shows {friend} all the {item} in the garden.",
        )
    )
    ending = rng.choice(("It was a fine day.", "Then it began to rain.", "They were glad."))
    return f"{text} {ending}" + (f" So \\boxed{{{rng.randrange(1, 200)}}}." if rng.random() < 0.5 else "")


def style_of(response: str) -> str:
    """Names the way of working of a plain-world response by its form, whoever wrote it; `other` for none of them."""
    head, boxed, _ = response.partition("\\boxed")
    if "Check:" in head:
        return "verified"
    if head in ("", "The answer is "):
        return "terse" if boxed else "other"
    if head.startswith(("Maybe", "My guess")):
        return "guess"
    return "worked" if any(character.isdigit() for character in head) else "other"
