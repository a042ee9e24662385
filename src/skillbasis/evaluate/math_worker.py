"""The process that runs Math-Verify: a JSON list [answer, reference, ...] per line in, one word per line out.

It says `ready` once, then `right`, `wrong`, `timeout` or `error` per item. Math-Verify needs the main thread for
SIGALRM; the parent (`grade.py`) kills this process where even the alarm is not heard.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import signal
import sys
from functools import lru_cache
from typing import Any

from .answers import canonical

WORKER_MEMORY_BYTES = 4 * 2**30
"""Address space: a huge power must not take the machine's memory before its time is up."""
ORPHAN_S = 10.0
"""Beyond the time-out: a stuck process without a parent ends itself this much later."""


class OutOfTime(BaseException):
    """Raised by the alarm; not an Exception, so that Math-Verify's own handlers let it pass."""


def main(timeout_s: float) -> None:
    """The worker process: compares one item per line of standard input until that ends."""
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not reach the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time-out is off

    def alarm(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, alarm)
    expression("1")  # imports everything before the clock starts
    with open(os.devnull, "w") as nowhere:
        print("ready", file=replies, flush=True)
        for line in requests:
            extracted, *references = json.loads(line)
            # Ends this process even where the interpreter is stuck and the parent is gone.
            faulthandler.dump_traceback_later(timeout_s + ORPHAN_S, exit=True, file=nowhere)
            try:
                signal.setitimer(signal.ITIMER_REAL, timeout_s)
                try:
                    reply = "right" if any(same_value(extracted, reference) for reference in references) else "wrong"
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except OutOfTime:
                reply = "timeout"
            except Exception:
                reply = "error"
            faulthandler.cancel_dump_traceback_later()
            print(reply, file=replies, flush=True)


def same_value(answer: str, reference: str) -> bool:
    """Whether Math-Verify holds two answers for equal."""
    from math_verify import verify

    gold, found = expression(reference), expression(answer)
    return gold is not None and found is not None and bool(verify(gold, found, timeout_seconds=None))


@lru_cache(maxsize=4096)
def expression(answer: str) -> Any:
    """The SymPy value of an answer, or None where it has none."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    text = re.sub(r"^([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)$", r"\1 \\times 10^{\2}", canonical(answer))
    if "**" in text and re.fullmatch(r"[\d\s.+\-*/^()]+", text):
        found = parse(text, [ExprExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    else:
        # Boxed, always: without it a bare \dfrac is not found, and of an equation only the last number is.
        latex = [LatexExtractionConfig(boxed_match_priority=0)]
        found = parse(f"\\boxed{{{text}}}", latex, fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


if __name__ == "__main__":
    main(float(sys.argv[1]))
