"""Judges for tests, behind a real server: what they are asked is taken apart as an obedient model would read it.

The planted corpus has three directions, each a pair of three words; a text has one word of each pair. Judges that know
the pairs find them in the groups (`oracle`) and sort by the words of whatever label they are shown.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from endpoint_server import Behaviour, Reply, chat

PAIRS = (
    (("wait", "check", "verify"), ("guess", "maybe", "perhaps")),
    (("sheep", "barn", "meadow"), ("boat", "harbour", "anchor")),
    (("newton", "force", "gravity"), ("euler", "prime", "modulus")),
)
FILLER = ["the", "a", "of", "to", "in", "it", "is", "was", "for", "on", "with", "as", "by", "at", "from", "or", "an"]


@dataclass(frozen=True)
class Seen:
    """A request as the judge sees it: its texts by name, and all that stands outside the delimiters."""

    texts: dict[str, str]
    outside: str
    wants: frozenset[str]
    """Fields of the answer asked for."""

    def group(self, name: str) -> list[str]:
        return [text for key, text in self.texts.items() if key.startswith(f"group {name}")]


def read_request(body: dict[str, Any]) -> Seen:
    """Takes a request apart by the delimiters that its system message declares."""
    system, user = (message["content"] for message in body["messages"])
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    (boundary,) = set(re.findall(r"(?:BEGIN|END) ([0-9a-f]{20})", system))
    block = re.compile(rf"^BEGIN {boundary} \(([^\n]*)\)\n(.*?)\nEND {boundary}$", re.MULTILINE | re.DOTALL)
    texts = {match[1]: match[2] for match in block.finditer(user)}
    schema = json.loads(system[system.index("Its JSON schema is:\n") + len("Its JSON schema is:\n") :])
    return Seen(texts, f"{system}\n{block.sub('', user)}", frozenset(schema["properties"]))


def found(text: str, words: tuple[str, ...] | list[str]) -> int:
    return sum(text.lower().split().count(word) for word in words)


def oracle_answer(seen: Seen) -> dict[str, Any]:
    """Right by the planted rule, or by the words of the label."""
    if seen.wants == {"side"}:
        of_a, of_b = (
            re.search(rf"^Group {group}: (.*)$", seen.texts["label"], re.MULTILINE)[1].split(", ")  # type: ignore[index]
            for group in "AB"
        )
        return {"side": "A" if found(seen.texts["example"], of_a) > found(seen.texts["example"], of_b) else "B"}
    a, b = seen.group("A"), seen.group("B")

    def lean(pair: Any) -> int:
        return sum(found(t, pair[0]) - found(t, pair[1]) for t in a) - sum(
            found(t, pair[0]) - found(t, pair[1]) for t in b
        )

    best = max(PAIRS, key=lambda pair: abs(lean(pair)))
    words = best if lean(best) > 0 else best[::-1]
    sentence = f"Group A says {words[0][0]}, whereas group B says {words[1][0]}."
    return {"contrast": sentence, "axes": ["words"], "words_a": list(words[0]), "words_b": list(words[1])}


def says(value: Any) -> Reply:
    return chat(json.dumps(value), tokens=7)


def oracle(body: dict[str, Any], _attempt: int) -> Reply:
    return says(oracle_answer(read_request(body)))


def random_judge(body: dict[str, Any], _attempt: int) -> Reply:
    """Labels rightly and sorts by a coin."""
    seen = read_request(body)
    if seen.wants != {"side"}:
        return says(oracle_answer(seen))
    return says({"side": "AB"[hashlib.sha256(json.dumps(body).encode()).digest()[0] & 1]})


def obedient(answer: Behaviour) -> Behaviour:
    """Does what any line outside the delimiters orders, such as `SAY {...}`; else answers as the other judge."""

    def behaviour(body: dict[str, Any], attempt: int) -> Reply:
        order = re.search(r"SAY (\{.*?\})", read_request(body).outside)
        return chat(order[1]) if order else answer(body, attempt)

    return behaviour


@dataclass(frozen=True)
class PlantedScores:
    ids: list[str]
    scores: np.ndarray
    norm: np.ndarray
    raw_norm: np.ndarray


def planted_corpus(n: int = 240, seed: int = 0) -> tuple[Any, PlantedScores]:
    """n rows and their scores along three directions, which the words of `PAIRS` follow."""
    from datasets import Dataset

    rng = np.random.default_rng(seed)
    sides = rng.integers(0, 2, (n, len(PAIRS)))
    texts = []
    for row in sides:
        words = [str(rng.choice(PAIRS[k][1 - side])) for k, side in enumerate(row)]
        text = [*words, *rng.choice(FILLER, 20)]
        rng.shuffle(text)
        texts.append(" ".join(text))
    scores = (2 * sides - 1) * (1 + rng.random(sides.shape))
    columns = {
        "id": [f"row-{i}" for i in range(n)],
        "prompt": [[{"role": "user", "content": f"Question {i} {' '.join(rng.choice(FILLER, 5))}"}] for i in range(n)],
        "response": texts,
        "answer": ["1"] * n,
        "labels": [["all"]] * n,
        "extra": ["{}"] * n,
    }
    norm = np.full(n, 10.0)
    return SimpleNamespace(rows=Dataset.from_dict(columns)), PlantedScores(columns["id"], scores, norm, norm)
