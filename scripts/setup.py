"""Make or refresh .venv: what ``make serve`` and ``make test`` do first. Standard library only, Python 3.7 or later.

What is already there as the lock files say is left alone, so a second call takes no time.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CPU_LOCK = ROOT / "requirements" / "cpu.lock"
DEV_LOCK = ROOT / "requirements" / "dev.lock"
PROTO = ROOT / "orchestrator" / "proto"
PROJECT = [ROOT / "pyproject.toml", ROOT / "hatch_build.py"]
PIP = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color"]
# Exit code 0 for a CPU build of torch. Its own word is read without importing it: what it needs isn't there yet.
CPU_BUILD = """
import importlib.util, pathlib, runpy, sys
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
sys.exit(runpy.run_path(str(folder / "version.py"))["cuda"] is not None)
"""
LOCK_SECONDS = 900
STEP_SECONDS = 1800
QUIET_SECONDS = 20  # between two lines where the screen can't be rewritten
TORCH_HINT = (
    "pip's sources have only a CUDA build of torch: make {goal} TORCH_INDEX=URL, an index with CPU builds of PyTorch"
)


class SetupError(Exception):
    """A step that went wrong: what, and what to do about it."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"setup: {what}\n       what to do: {advice}")


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line now and then."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.began = time.monotonic()
        self.shown = self.began
        self.rewrites = sys.stdout.isatty()
        if not self.rewrites:
            self._write(f"setup: {step} ...\n")

    def show(self, detail: str) -> None:
        now = time.monotonic()
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r\033[K" + f"setup: {self.step}: {detail}, {now - self.began:.0f} s"[:width])
        elif now - self.shown >= QUIET_SECONDS:
            self.shown = now
            self._write(f"setup: {self.step}: {detail}, {now - self.began:.0f} s\n")

    def done(self) -> None:
        self._write(
            ("\r\033[K" if self.rewrites else "") + f"setup: {self.step}: {time.monotonic() - self.began:.0f} s\n"
        )

    def abandon(self) -> None:
        self._write("\r\033[K" if self.rewrites else "")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def check_machine() -> None:
    version = "{}.{}".format(*sys.version_info[:2])
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise SetupError(f"this is Python {version}", "install Python 3.11 or 3.12, then make PYTHON=python3.12 ...")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found = f"{sys.platform} on {platform.machine()}"
        raise SetupError(
            f"this is {found}; the locked CPU set is for Linux on x86-64", "use such a machine or container"
        )


def run(step: str, command: list, advice: str) -> None:
    """Run a command with a progress line. Its output is shown only if it fails."""
    progress = Progress(step)
    deadline = time.monotonic() + STEP_SECONDS
    log = VENV / "setup.log" if VENV.is_dir() else Path(os.devnull)
    seen = ["starting"]
    with open(log, "w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    process.kill()
                progress.show(_pip_detail(log) or seen[-1])
                time.sleep(0.5)
        except BaseException:
            process.terminate()
            process.wait()
            progress.abandon()
            raise
    if process.returncode:
        progress.abandon()
        sys.stdout.write(_last_words(log))
        raise SetupError(f"{step} failed (exit code {process.returncode})", advice)
    progress.done()


def _pip_detail(log: Path) -> str:
    """Where pip is, from what it has written so far."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    if any(line.startswith("Installing collected packages") for line in lines):
        return "unpacking"
    found = sum(line.startswith(("Collecting ", "Requirement already")) for line in lines)
    return f"{found} packages found" if found else "working"


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    told = [line for line in lines if line.strip() and not line.startswith("WARNING: Location")]
    return "".join(f"  {line}\n" for line in told[-15:])


def digest(*files: Path) -> str:
    """Of the files' contents, and of where this environment is: its scripts hold its own path."""
    total = hashlib.sha256(f"{VENV} {sys.version}".encode())
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


class Stamp:
    """A file that says for which inputs a step was done."""

    def __init__(self, name: str, *files: Path) -> None:
        self.file = VENV / f"segue-{name}.stamp"
        self.wanted = digest(*files)

    def fresh(self) -> bool:
        return self.file.is_file() and self.file.read_text(encoding="utf-8") == self.wanted

    def set(self) -> None:
        self.file.write_text(self.wanted, encoding="utf-8")


def make_venv() -> None:
    stamp = Stamp("venv")
    if PYTHON.exists() and stamp.fresh():
        return
    advice = "on Debian or Ubuntu: apt-get install python3-venv; then try again"
    run("making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)], advice)
    stamp.set()


def install_torch(index: str, goal: str) -> None:
    """torch on its own and first: it may come from an index of its own, and ordinary ones have only CUDA builds."""
    pin = next(line for line in CPU_LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
    source = ["--index-url", index] if index else []
    advice = f"if the network is up, name an index that has {pin}: make {goal} TORCH_INDEX=URL"
    run(f"installing {pin}", [*PIP, "install", "--no-deps", *source, pin], advice)
    if subprocess.run([str(PYTHON), "-c", CPU_BUILD]).returncode:
        subprocess.run([*PIP, "uninstall", "--yes", "--quiet", "torch"])
        raise SetupError("the torch that pip found is not a CPU build", TORCH_HINT.format(goal=goal))


def install_lock(lock: Path) -> None:
    count = sum("==" in line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    advice = "check the network and the disk (4 GB), then try again: what is already there is kept"
    command = [*PIP, "install", "--no-deps", "--requirement", str(lock)]
    run(f"installing {count} packages ({lock.stem})", command, advice)


def install_project() -> None:
    protos = sorted(PROTO.glob("*.proto"))
    stamp = Stamp("project", *PROJECT, *protos)
    built = all(file.with_name(f"{file.stem}_pb2.py").is_file() for file in protos)
    if stamp.fresh() and built:
        return
    command = [*PIP, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    run("installing segue", command, "look at the lines above; if a .proto file changed, it has to compile")
    stamp.set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="with the tools that make test needs")
    parser.add_argument("--torch-index", default="", metavar="URL", help="where torch alone comes from")
    options = parser.parse_args()
    goal = "test" if options.dev else "serve"
    check_machine()
    with_lock()
    make_venv()
    cpu = Stamp("cpu", CPU_LOCK)
    if not cpu.fresh():
        install_torch(options.torch_index, goal)
        install_lock(CPU_LOCK)
        cpu.set()
    dev = Stamp("dev", CPU_LOCK, DEV_LOCK)
    if options.dev and not dev.fresh():
        install_lock(DEV_LOCK)
        dev.set()
    install_project()
    return 0


def with_lock() -> None:
    """One setup at a time in this folder, until this process ends."""
    folder = os.open(ROOT, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SetupError("another setup holds this folder", "wait for it, or end it, then try again") from None
            time.sleep(0.5)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except SetupError as failure:
        raise SystemExit(str(failure)) from None
    except KeyboardInterrupt:
        raise SystemExit("\nsetup: interrupted; run it again to go on") from None
