"""Lines, bars and events."""

import io
import json

import pytest
from rich.console import Console

from zsq.core import progress
from zsq.core.progress import EventLog, Reporter, duration


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

        def time(self):
            return 1_700_000_000.1234

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def make_reporter(events=None, terminal=False):
    reporter = Reporter(events)
    output = io.StringIO()
    reporter.console = Console(file=output, force_terminal=terminal, soft_wrap=True, width=200)
    return reporter, output


def events_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (3599, "59 min 59 s"),
     (3600, "1 h 0 min"), (7384, "2 h 3 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_events_are_appended_as_lines_of_json(tmp_path, clock):
    path = tmp_path / "events.jsonl"
    EventLog(path).write("start", count=3, text="größe\nnew")
    EventLog(path).write("end")
    assert events_of(path) == [
        {"time": 1_700_000_000.123, "event": "start", "count": 3, "text": "größe\nnew"},
        {"time": 1_700_000_000.123, "event": "end"},
    ]
    EventLog(None).write("start")


def test_a_line_is_said_and_logged_as_it_is(tmp_path):
    path = tmp_path / "events.jsonl"
    reporter, output = make_reporter(path)
    line = "[bold]not markup[/bold] 12 of 30 images, " + "long " * 50
    reporter.say(line)
    assert output.getvalue().strip() == line.strip()
    assert events_of(path)[0]["text"] == line


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(tmp_path, clock):
    path = tmp_path / "events.jsonl"
    reporter, output = make_reporter(path)
    with reporter.job("dsg on [b]toy", 100) as log:
        for _ in range(5):
            clock.now += 4.0
            log.advance(10, bn=1.5, ce=0.000123456)
    assert output.getvalue().splitlines() == ["dsg on [b]toy: 30/100, 28 s left bn 1.5 ce 0.0001235"]
    events = events_of(path)
    assert [event["done"] for event in events] == [10, 20, 30, 40, 50]
    assert events[0]["total"] == 100 and events[0]["title"] == "dsg on [b]toy" and events[0]["bn"] == 1.5


def test_a_terminal_gets_a_bar_that_moves():
    reporter, output = make_reporter(terminal=True)
    with reporter.job("[b]zeroq", 10) as log:
        log.advance(4, bn=1.25)
        assert log.bar.tasks[0].completed == 4 and log.bar.tasks[0].total == 10
        log.advance(6)
        assert log.bar.finished
    assert "[b]zeroq" in output.getvalue()
    # The latest losses stay while none is said.
    assert "100%" in output.getvalue().rpartition("bn 1.25")[0]


def test_quiet_is_silent(capsys, tmp_path):
    path = tmp_path / "events.jsonl"
    reporter = Reporter(path, quiet=True)
    reporter.say("hello")
    with reporter.job("work", 2) as log:
        log.advance(2)
    assert capsys.readouterr() == ("", "")
    assert [event["event"] for event in events_of(path)] == ["say", "step"]


def test_reports_go_to_standard_error(capsys):
    Reporter().say("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "hello\n"
