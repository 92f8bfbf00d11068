"""What a recording costs the event loop that it stands beside.

    python -m benchmarks.recording [EVENTS_A_SECOND] [SECONDS]

An event loop gets step frames of 64 workers and a request a hundredth of them, and beside that does what any gateway
does all the time: it waits a millisecond and looks how late it is. Printed with and without a recorder, in one run:
the time that a note takes, how late the loop is, the CPU of the whole process.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.config import dumps
from orchestrator.core import messages as m
from orchestrator.core.decision import CachedBy, Choice, Decision, Rule
from orchestrator.core.spec import ClusterSpec
from orchestrator.core.types import Load, RequestReport
from orchestrator.record.recorder import Recorder
from orchestrator.record.recording import Header

WORKERS = 64
CHOICE = Choice("model-decode-17", 0.93125, 8, 64, 3, 1024, CachedBy.EVENTS, 0.00125, 0.03375)
DECISION = Decision("model-decode-17", "model-prefill-3", Rule.CHEAPER_APART, "cost", CHOICE, CHOICE, 0.125, 0.25)
BLOCKS = tuple(range(1 << 59, (1 << 59) + 125))  # of a prompt of 2,000 tokens


def request(number: int) -> list[tuple[m.Event, list[m.Command]]]:
    name = f"chatcmpl-{number:032x}-0a1b2c3d"
    prefill, decode = f"{name}~p1", f"{name}~d1"
    report = RequestReport(
        name, "model", "finished", "model-prefill-3", "model-decode-17", 2000, 200, 512, 1488, 1 << 24
    )
    return [
        (m.Arrived(name, "model", 2000, blocks=BLOCKS), [m.StartPrefill(name, prefill, "model-prefill-3", DECISION)]),
        (m.PrefillEnded(prefill, True, "", 512), [m.StartDecode(name, decode, "model-decode-17", prefill, DECISION)]),
        (m.FirstToken(decode, 512, 1488), []),
        (m.DecodeEnded(decode, 200), [m.End(report)]),
    ]


class Run:
    """Some seconds of events; ``late`` and ``notes`` in seconds."""

    def __init__(self, recorder: Recorder | None, rate: float) -> None:
        self._recorder = recorder
        self._rate = rate
        self.late: list[float] = []
        self.notes: list[float] = []

    async def go(self, seconds: float) -> None:
        look = asyncio.create_task(self._look())
        began, number = time.perf_counter(), 0
        while (now := time.perf_counter() - began) < seconds:
            while number < now * self._rate:
                number += 1
                self._note(m.LoadReported(f"model-decode-{number % WORKERS}", Load(3, number % 7, number, 9000), 2), [])
                if number % 100 == 0:
                    for event, commands in request(number):
                        self._note(event, commands)
            await asyncio.sleep(0.002)
        look.cancel()

    def _note(self, event: m.Event, commands: list[m.Command]) -> None:
        before = time.perf_counter()
        if self._recorder is not None:
            self._recorder.note(before, event, commands)
        self.notes.append(time.perf_counter() - before)

    async def _look(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.late.append(time.perf_counter() - before - 0.001)


def main() -> None:
    rate, seconds = (float(given) for given in (*sys.argv[1:], "3000", "5")[:2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        header = Header("0", "gateway-0", 1, 1, time.time(), time.monotonic(), dumps(ClusterSpec("bench", ())))
        print(f"{rate:g} frames/s, {rate / 100:g} requests/s, {seconds:g} s")
        for name in ("without", "with"):
            recorder = Recorder(str(path), header, print) if name == "with" else None
            run, cpu = Run(recorder, rate), time.process_time()
            asyncio.run(run.go(seconds))
            if recorder is not None:
                recorder.close()
            cpu = (time.process_time() - cpu) / seconds
            late = [1e3 * value for value in statistics.quantiles(run.late, n=1000)]
            note = 1e6 * statistics.median(run.notes)
            lateness = f"loop late p50 {late[499]:.2f} p99 {late[989]:.2f} p99.9 {late[998]:.2f} ms"
            print(f"{name:8} note {note:.2f} us, {lateness}, CPU {cpu:.1%} of a core")
        print(f"{path.stat().st_size / seconds / 1e6:.2f} MB/s")


if __name__ == "__main__":
    main()
