"""Progress where no terminal watches: a line now and then, with the pace of this run."""

from __future__ import annotations

import pytest

from skillbasis import console


def test_a_log_gets_a_line_when_it_is_time_with_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    with console.progress("extract") as tick:
        for seconds, done in ((0, 5000), (30, 5100), (61, 5200), (90, 5300), (122, 5400)):
            now[0] = 100.0 + seconds
            tick(done, 10_000, "7 tokens/s")
    # 5,000 rows were there before: 200 rows in 61 s leave 4,800 rows for 24 min
    assert capsys.readouterr().err.splitlines() == [
        "extract: 5,200 of 10,000, 24 min left, 7 tokens/s",
        "extract: 5,400 of 10,000, 23 min left, 7 tokens/s",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("extract") as tick:
        tick(1, 2, "")
        tick(2, 2, "")
    assert capsys.readouterr().err == ""
