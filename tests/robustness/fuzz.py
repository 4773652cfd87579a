"""Command lines and damaged files, drawn from a seed: none may end in a traceback, hang or leave a leftover.

python tests/robustness/fuzz.py --lines 500 --files 300 --seed 0

Each case runs in a process of its own, forked from one that has everything imported, in a folder of its own
with a small example of everything that zsq reads. At least half of the command lines are valid.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "robustness")]

from fuzz_example import Case, example  # noqa: E402
from fuzz_files import damaged_files  # noqa: E402
from fuzz_lines import lines  # noqa: E402

SECONDS = 60.0  # that a case may take
MEMORY = 6 * 2**30  # bytes that it may have, over what is loaded
ENDS = (0, 1, 2)


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `fault` is empty where it did as it should."""

    name: str
    status: int
    seconds: float
    said: str
    fault: str


def run(case: Case, template: Path, folder: Path) -> Outcome:
    """The case in a copy of `template`."""
    shutil.copytree(template, folder, symlinks=True)
    case.prepare(folder)
    start = time.monotonic()
    child = os.fork()
    if not child:
        _child(case.arguments, folder)
    status = _wait(child, start + SECONDS)
    seconds = time.monotonic() - start
    said = (folder.parent / f"{folder.name}.err").read_text(errors="replace")
    left = [path.name for path in folder.rglob("*.zsq.tmp")]
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(case.name, status, seconds, said, _fault(status, said, left))


def _child(arguments: Iterable[str], folder: Path) -> None:
    """Never returns."""
    status = 99
    try:
        os.chdir(folder)
        for number, end in ((1, "out"), (2, "err")):
            target = os.open(f"{folder}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["zsq", *arguments]
        from zsq.cli import main

        main()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, deadline: float) -> int:
    """Exit status; a negative signal number where one ended it, -SIGKILL where it hung."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _fault(status: int, said: str, left: list[str]) -> str:
    if status == -signal.SIGKILL:
        return f"hangs, or takes more than {SECONDS:g} s"
    if status not in ENDS:
        return f"ends with status {status}"
    if "Traceback" in said:
        return "says a traceback"
    if status and not said.rstrip("\n").rpartition("\n")[2].startswith("zsq: "):
        return "does not end in a line of zsq"
    return f"leaves {left[0]}" if left else ""


def outcomes(cases: list[Case], template: Path, scratch: Path, processes: int) -> Iterator[Outcome]:
    """Of all cases, in the order in which they end, worked on by `processes` forks of this process."""
    readers = []
    for rank in range(processes):
        reader, writer = os.pipe()
        if not os.fork():
            with os.fdopen(writer, "w") as results:
                for index in range(rank, len(cases), processes):
                    outcome = run(cases[index], template, scratch / f"case-{index}")
                    results.write(json.dumps(vars(outcome)) + "\n")
                    results.flush()
            os._exit(0)
        os.close(writer)
        readers.append(os.fdopen(reader))
    for reader in readers:
        with reader:
            for line in reader:
                yield Outcome(**json.loads(line))
    for _ in readers:
        os.wait()


def fuzz(
    num_lines: int,
    num_files: int,
    seed: int,
    processes: int = 2,
    only: Callable[[Case], bool] = lambda case: True,
    each: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Outcomes of that many command lines and damaged files."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="zsq-fuzz-") as scratch:
        template = Path(scratch) / "template"
        example(template)
        cases = [*lines(num_lines, seed), *damaged_files(num_files, seed, template)]
        found = []
        for outcome in outcomes(list(filter(only, cases)), template, Path(scratch), processes):
            each(outcome)
            found.append(outcome)
        return found


def main() -> None:
    """Print what went wrong and a summary; the exit status says whether anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", type=int, default=500)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="text that the names of cases to run hold")
    parser.add_argument("--verbose", action="store_true", help="say how every case ended")
    options = parser.parse_args()

    def say(outcome: Outcome) -> None:
        if outcome.fault:
            print(f"FAULT {outcome.name}\n  {outcome.fault}\n{outcome.said[-3000:]}", flush=True)
        elif options.verbose:
            last = outcome.said.rstrip().rpartition("\n")[2][:200]
            print(f"{outcome.status} {outcome.seconds:.1f} s {outcome.name}: {last}", flush=True)

    found = fuzz(
        options.lines, options.files, options.seed, options.processes, lambda c: options.only in c.name, say
    )
    for kind in ("line", "file"):
        of_kind = [outcome for outcome in found if outcome.name.startswith(kind)]
        ends = sorted(Counter(outcome.status for outcome in of_kind).items())
        faults = sum(bool(outcome.fault) for outcome in of_kind)
        print(f"{len(of_kind)} {kind}s: exit statuses {dict(ends)}, {faults} faults")
    sys.exit(any(outcome.fault for outcome in found))


if __name__ == "__main__":
    main()
