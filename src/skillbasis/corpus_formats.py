"""From a row in any known format to prompt, response, answer and labels; from any value to JSON."""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import CorpusError, UsageError, nearest

Message = dict[str, str]
Row = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


class RowError(ValueError):
    """A row that cannot be used; the text is the reason alone, the caller knows the place."""


@dataclass(frozen=True)
class Turns:
    """What one row asks and answers.

    Attributes:
        prompt: messages {role, content} before the response.
        response: text of the response; empty where the row has none.
        columns: the columns read; all others are carried along.
    """

    prompt: list[Message]
    response: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class NormalRow:
    """One row in the form every command works on; `extra` and `source_row` are JSON texts of objects."""

    id: str
    prompt: list[Message]
    response: str
    answer: str | None
    labels: list[str]
    extra: str
    source_row: str

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the normalised content, without the source row it came from."""
        content = [self.id, self.prompt, self.response, self.answer, self.labels, self.extra]
        return hashlib.sha256(to_json(content, sort_keys=True).encode()).digest()


def kind(value: Any) -> str:
    """What a value is, in the words of the error messages."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, bool):
        return "true or false"
    names = {type(None): "null", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what} is {kind(value)}, not text")
    return value


def _optional_text(row: Row, column: str) -> str:
    return "" if row.get(column) is None else _text(row[column], f"'{column}'")


def _required(row: Row, column: str) -> Any:
    if column not in row:
        raise RowError(f"the column '{column}' is missing (columns: {', '.join(map(str, row)) or 'none'})")
    return row[column]


def _first_in(row: Row, *columns: str) -> str:
    """The first of the columns that the row has, else the first name (whose absence is then reported or allowed)."""
    return next((column for column in columns if column in row), columns[0])


def _turns(value: Any, column: str) -> list[Message]:
    """Reads a list of {role, content} or {from, value} and gives each role its common name."""
    if not isinstance(value, list):
        raise RowError(f"'{column}' is {kind(value)}, not a list of turns")
    turns = []
    for number, turn in enumerate(value, 1):
        where = f"turn {number} of '{column}'"
        if not isinstance(turn, dict):
            raise RowError(f"{where} is {kind(turn)}, not an object")
        role_key, content_key = ("role", "content") if "role" in turn else ("from", "value")
        role = _text(turn.get(role_key), f"the role of {where}").strip().lower()
        if role not in ROLES:
            raise RowError(f"{where} has the unknown role '{role}'{nearest(role, list(ROLES))}")
        turns.append({"role": ROLES[role], "content": _text(turn.get(content_key), f"the content of {where}")})
    return turns


def _last_assistant(turns: list[Message]) -> int:
    return max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))


def _from_turns(row: Row, column: str) -> Turns:
    """The last assistant turn is the response, all before it the prompt; turns after it are left out of both."""
    turns = _turns(_required(row, column), column)
    last = _last_assistant(turns)
    return Turns(turns[:last], turns[last]["content"] if last < len(turns) else "", (column,))


def _messages(row: Row) -> Turns:
    return _from_turns(row, "messages")


def _sharegpt(row: Row) -> Turns:
    return _from_turns(row, "conversations")


def _prompt(row: Row, column: str) -> list[Message]:
    value = _required(row, column)
    if isinstance(value, list):
        return _turns(value, column)
    return [{"role": "user", "content": _text(value, f"'{column}'")}]


def _prompt_response(row: Row) -> Turns:
    column = _first_in(row, "response", "completion")
    prompt = _prompt(row, "prompt")
    if not isinstance(row.get(column), list):
        return Turns(prompt, _optional_text(row, column), ("prompt", column))
    turns = prompt + _turns(row[column], column)
    last = _last_assistant(turns)
    if not len(prompt) <= last < len(turns):
        raise RowError(f"'{column}' has no assistant turn")
    return Turns(turns[:last], turns[last]["content"], ("prompt", column))


def _problem_solution(row: Row) -> Turns:
    """`response` (a model's own) goes before `solution` (a reference); a question's `answer` serves without either."""
    column = _first_in(row, "problem", "question")
    written = ("response", "solution") if column == "problem" else ("response", "solution", "answer")
    response = _first_in(row, *written)
    prompt = [{"role": "user", "content": _text(_required(row, column), f"'{column}'")}]
    return Turns(prompt, _optional_text(row, response), (column, response))


def _alpaca(row: Row) -> Turns:
    """Instruction and input are joined by a newline, as LLaMA-Factory joins them; `history` comes before."""
    prompt: list[Message] = []
    for number, pair in enumerate(row.get("history") or [], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"entry {number} of 'history' is not a pair of user and assistant text")
        for role, content in zip(("user", "assistant"), pair, strict=True):
            prompt.append({"role": role, "content": _text(content, f"entry {number} of 'history'")})
    instruction = _text(_required(row, "instruction"), "'instruction'")
    parts = [part for part in (instruction, _optional_text(row, "input")) if part.strip()]
    prompt.append({"role": "user", "content": "\n".join(parts)})
    return Turns(prompt, _optional_text(row, "output"), ("instruction", "input", "output", "history"))


def _llama_nemotron(row: Row) -> Turns:
    return Turns(_prompt(row, "input"), _optional_text(row, "output"), ("input", "output"))


@dataclass(frozen=True)
class Format:
    """How one format is read: the function, its columns in words, and the text columns that hold a system prompt."""

    read: Callable[[Row], Turns]
    columns: str
    system_columns: tuple[str, ...] = ("system_prompt",)


FORMATS = {
    "messages": Format(_messages, "messages"),
    "sharegpt": Format(_sharegpt, "conversations", ("system_prompt", "system")),
    "alpaca": Format(_alpaca, "instruction, input, output", ("system_prompt", "system")),
    "llama-nemotron": Format(_llama_nemotron, "input, output"),
    "prompt-response": Format(_prompt_response, "prompt, response or completion"),
    "problem-solution": Format(_problem_solution, "problem or question, solution or response or answer"),
}

# The first set whose columns are all there names the format; prompts alone come last.
_SIGNATURES = [
    ({"messages"}, "messages"),
    ({"conversations"}, "sharegpt"),
    ({"instruction", "output"}, "alpaca"),
    ({"input", "output"}, "llama-nemotron"),
    ({"prompt", "response"}, "prompt-response"),
    ({"prompt", "completion"}, "prompt-response"),
    *(
        ({ask, say}, "problem-solution")
        for ask in ("problem", "question")
        for say in ("response", "solution", "answer")
    ),
    ({"prompt"}, "prompt-response"),
    ({"problem"}, "problem-solution"),
    ({"question"}, "problem-solution"),
]


def check_format(name: str) -> None:
    """Raises: UsageError: when no format has this name."""
    if name not in FORMATS:
        raise UsageError(f"unknown format '{name}'{nearest(name, list(FORMATS))}; formats are {', '.join(FORMATS)}")


def find_format(columns: list[str], place: object) -> str:
    """Names the format of a corpus by the columns of its first row.

    Raises: CorpusError: when they fit none; it lists the columns and the formats known.
    """
    present = set(columns)
    for required, name in _SIGNATURES:
        if required <= present:
            return name
    known = "; ".join(f"{name}: {form.columns}" for name, form in FORMATS.items())
    raise CorpusError(
        f"{place}: no known format has the columns {', '.join(map(str, columns)) or '(none)'}; "
        f"rename them to those of a format ({known})"
    )


def plain(value: Any) -> Any:
    """The value as JSON can hold it.

    Dates and times become ISO text, bytes base64, decimals text, durations seconds; a number JSON has no word for
    (NaN, infinity) becomes null.

    Raises: RowError: for any other type.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise RowError(f"a value of type {type(value).__name__} has no JSON form; leave its column out")


def to_json(value: Any, sort_keys: bool = False) -> str:
    """One line of strict JSON; text stays readable (no \\u escapes)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)


def _label_texts(value: Any, column: str) -> list[str]:
    """Labels as texts in their order, each once; null, NaN and empty text are no label."""
    if isinstance(value, list | tuple):
        texts = [text for item in value for text in _label_texts(item, column)]
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        texts = []
    elif isinstance(value, str):
        texts = [value] if value.strip() else []
    elif isinstance(value, bool | int):
        texts = [json.dumps(value)]
    elif isinstance(value, float):
        # A column of integers with a gap comes out of a data frame as floats: level 3.0 is level 3.
        texts = [str(int(value)) if value.is_integer() else str(value)]
    else:
        raise RowError(f"the label in '{column}' is {kind(value)}, not text, a number or a list of them")
    return list(dict.fromkeys(texts))


def _answer(row: Row) -> str | None:
    value = row.get("answer")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return str(value)
    return _text(value, "'answer'")


def _named_id(row: Row) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"'id' is {kind(value)}, not text or a whole number")
    if not str(value).strip():
        raise RowError("'id' is empty")
    return str(value)


def normalise(row: Row, format_name: str, label_column: str | None = None) -> NormalRow:
    """Brings one source row into the common form.

    Args:
        row: the row as read.
        format_name: a key of FORMATS.
        label_column: column of human skill labels instead of `labels`: text, a number or a list of them.
    Returns: the row; without an `id` it gets the first 16 hex digits of the SHA-256 of prompt, response and answer.
    Raises: RowError: with the reason, when the row cannot be used.
    """
    form = FORMATS[format_name]
    turns = form.read(row)
    prompt, used = turns.prompt, set(turns.columns)
    system = next((column for column in form.system_columns if _optional_text(row, column).strip()), None)
    if system is not None and not (prompt and prompt[0]["role"] == "system"):
        prompt = [{"role": "system", "content": row[system]}, *prompt]
        used.add(system)
    if not any(turn["content"].strip() for turn in prompt):
        raise RowError("the prompt is empty")
    answer = None if "answer" in used else _answer(row)
    labels_from = label_column or "labels"
    labels = _label_texts(row.get(labels_from), labels_from)
    row_id = _named_id(row)
    used |= {"id", "answer", labels_from}
    try:
        source = plain(row)
        extra = to_json({key: value for key, value in source.items() if key not in used}, sort_keys=True)
        source_row = to_json(source)
        source_row.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(
            "a text holds half of a surrogate pair (a \\ud800-\\udfff escape), which is no character"
        ) from None
    except RecursionError:
        raise RowError("the row is nested too deeply") from None
    if row_id is None:
        row_id = hashlib.sha256(to_json([prompt, turns.response, answer]).encode()).hexdigest()[:16]
    return NormalRow(row_id, prompt, turns.response, answer, labels, extra, source_row)
