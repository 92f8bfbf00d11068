"""Talking to a model from the shell."""

from __future__ import annotations

import io

import pytest

from orchestrator.cli.main import main
from orchestrator.proto import inference_pb2 as pb
from tests.cli.conftest import Runs
from tests.cli.fakes import FakeCluster


def said(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.chat.messages]


def test_an_answer_on_stdout_and_its_account_on_stderr(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    assert main(["chat", "--system", "Be brief.", "--max-tokens", "9", "--temperature", "0", "Capital?"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "The capital is Paris.\n"
    assert "prefill on tiny-prefill-0 · decode on tiny-decode-0 · 1.5 MB of KV cache moved (38 tokens)" in shown.err
    assert "TTFT 112 ms" in shown.err
    assert "tokens/s" in shown.err
    [request] = cluster.asked
    assert said(request) == [("system", "Be brief."), ("user", "Capital?")]
    assert request.model == "tiny"
    assert (request.sampling.max_tokens, request.sampling.HasField("temperature")) == (9, True)


def test_a_prompt_from_a_pipe(cluster: FakeCluster, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(grpc=cluster.address)
    monkeypatch.setattr("sys.stdin", io.StringIO("Capital?\n"))
    assert main(["chat"]) == 0
    assert said(cluster.asked[0]) == [("user", "Capital?")]


class Typist(io.StringIO):
    """Standard input with a person at it; each line but the last is followed by the next when asked for."""

    def isatty(self) -> bool:
        return True


def test_a_conversation_remembers_until_reset(
    cluster: FakeCluster, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    monkeypatch.setattr("sys.stdin", Typist("Capital?\nAnd of Spain?\n\n/reset\nHello\n"))
    assert main(["chat"]) == 0
    answer = ("assistant", "The capital is Paris.")
    assert [said(request) for request in cluster.asked] == [
        [("user", "Capital?")],
        [("user", "Capital?"), answer, ("user", "And of Spain?")],
        [("user", "Hello")],
    ]
    assert capsys.readouterr().out.count("The capital is Paris.") == 3


def test_a_refused_turn_is_shown_and_forgotten(
    cluster: FakeCluster, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    cluster.refusal = ("invalid_request", "the prompt is too long")
    monkeypatch.setattr("sys.stdin", Typist("a very long question\nagain\n"))
    assert main(["chat"]) == 0
    assert "the prompt is too long" in capsys.readouterr().out
    assert said(cluster.asked[1]) == [("user", "again")]


@pytest.mark.parametrize(("reason", "code"), [("not_ready", 3), ("invalid_request", 1), ("overloaded", 1)])
def test_refusals_end_the_command_with_the_right_code(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str], reason: str, code: int
) -> None:
    runs(grpc=cluster.address)
    cluster.refusal = (reason, "why it is so")
    assert main(["chat", "Capital?"]) == code
    assert "why it is so" in capsys.readouterr().err


def test_ctrl_c_cancels_the_request(
    cluster: FakeCluster, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    cluster.hold.clear()

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.chat._show", interrupted)
    assert main(["chat", "Capital?"]) == 130
    assert cluster.cancelled.wait(5)
    assert "Traceback" not in capsys.readouterr().err


def test_control_sequences_from_a_model_do_not_reach_the_terminal(
    cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(grpc=cluster.address)
    cluster.words = ["\x1b[2Jgone\x07"]
    assert main(["chat", "Clear my screen"]) == 0
    assert capsys.readouterr().out == "gone\n"


def test_not_running_is_exit_3(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "Capital?"]) == 3
    runs(phase="starting")
    assert main(["chat", "Capital?"]) == 3
    assert "cluster test is starting" in capsys.readouterr().err


def test_several_models_need_a_choice(cluster: FakeCluster, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs(grpc=cluster.address)
    cluster.models += [pb.Model(name="other", tasks=["generate"]), pb.Model(name="vectors", tasks=["embed"])]
    assert main(["chat", "Capital?"]) == 2
    assert "tiny, other (choose" in capsys.readouterr().err
    assert main(["chat", "--model", "other", "Capital?"]) == 0
    assert cluster.asked[0].model == "other"
