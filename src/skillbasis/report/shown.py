"""How numbers are written, the same for page and terminal."""

from __future__ import annotations

from dataclasses import dataclass

from .records.figures import Difference, Interval, Measured

DASH = "–"
MINUS = "−"
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Shown:
    """A number as it is printed: the estimate, its interval in brackets, and why either is missing (or '')."""

    mean: str
    interval: str
    reason: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.mean, self.interval, self.reason and f"({self.reason})") if part)


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction in percent with one decimal, without the sign %: 0.4125 -> `41.2`; signed -> `+41.2`; None -> dash."""
    if fraction is None:
        return DASH
    text = f"{100 * fraction:+.1f}" if signed else f"{100 * fraction:.1f}"
    return ("0.0" if float(text) == 0 else text).replace("-", MINUS)


def number(value: float | None, digits: int = 2) -> str:
    """A plain number with thousands separated; whole numbers without decimals; None -> dash."""
    if value is None:
        return DASH
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", MINUS)


def area(value: float | None) -> str:
    """An area under the curve without the 0 before the point, as tables of many have it: .87; None -> dash."""
    return number(value).removeprefix("0")


def p_text(value: float | None) -> str:
    """A p-value with three decimals; None -> dash."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 1 h 02 min; None -> dash."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(n_bytes: float | None) -> str:
    """Bytes as people say them: 812 B, 20.7 MB, 2.4 TB; None -> dash."""
    if n_bytes is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}" if unit == "B" or n_bytes >= 99.95 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def area_style(value: Interval) -> str:
    """The background of an area in a heat map: blue above chance, orange below, the paler the nearer to chance."""
    if value.mean is None:
        return ""
    colour = "blue" if value.mean >= 0.5 else "orange"
    return f"background: color-mix(in srgb, var(--{colour}) {min(90 * abs(value.mean - 0.5), 45):.0f}%, transparent)"


def show(value: Interval | None, of: Measured | None = None, *, signed: bool | None = None) -> Shown:
    """An estimate with its interval in percent; what is undefined becomes a dash with its reason.

    Args:
        value: the estimate, a fraction; None where it was not recorded.
        of: what was measured, whose status and reason explain a missing estimate.
        signed: whether to print a plus; differences are signed unless told otherwise.
    """
    value = value or Interval()
    signed = isinstance(value, Difference) if signed is None else signed
    if value.mean is None:
        return Shown(DASH, "", why_missing(of))
    if not value.bounded:
        return Shown(percent(value.mean, signed=signed), f"[{DASH}]", _no_interval(value))
    ends = f"[{percent(value.low, signed=signed)},{NBSP}{percent(value.high, signed=signed)}]"
    return Shown(percent(value.mean, signed=signed), ends, "")


def why_missing(of: Measured | None) -> str:
    """Why there is no estimate: what failed and the reason recorded, else that it was not measured."""
    if of is None or of.status == "done":
        return "not measured"
    return f"{of.status}: {of.reason}" if of.reason else f"{of.status}, no reason recorded"


def _no_interval(value: Interval) -> str:
    return "one seed gives no interval" if len(value.seeds) == 1 else "no interval recorded"
