"""What prefill, transfer and decode take on a worker: first by a roofline, then by what it really took."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.core.fit import Line, Pace
from orchestrator.core.spec import Device
from orchestrator.core.types import EngineFacts


class Machine(NamedTuple):
    """What one worker's device reaches in practice, on the low side: the guess is corrected soon enough."""

    flops: float  # a second
    memory: float  # bytes a second
    link: float  # bytes a second between two workers
    step: float  # seconds of a step that are neither
    handover: float  # seconds of a hand-over that are not bytes
    weight_bytes: int  # of a parameter


# GPU: NVIDIA's A100 80GB data sheet has 312 TFLOP/s (BF16, dense) and 2,039 GB/s; taken are 45% and 65%, and half of a
# 100 Gbit/s network card. CPU: a few cores with AVX2 or better on two channels of DDR4-3200 (51 GB/s), and loopback.
MACHINES = {
    Device.GPU: Machine(140e12, 1.3e12, 6e9, 3e-3, 5e-3, 2),
    Device.CPU: Machine(100e9, 20e9, 1e9, 2e-3, 5e-3, 4),
}
QUERY_HEADS = 4  # for each KV head: grouped-query attention as most models have it
ALL_STEPS = 64  # these first ones are all learned from, then
SOME_STEPS = 8  # every so many: there are hundreds a second
USUAL_CONTEXT = 1024  # tokens before a prompt's or a sequence's next one
# Where the weights are unknown: a small model on a good device.
UNKNOWN_PREFILL, UNKNOWN_STEP, UNKNOWN_SEQUENCE, UNKNOWN_TRANSFER = 1e-4, 1e-2, 1e-4, 1e-6


class Peers:
    """What workers with the same model, role and device have in common: the lines that each of them adds to."""

    __slots__ = ("attention", "prefill", "step", "token", "transfer")

    def __init__(self, facts: EngineFacts | None = None) -> None:
        machine = MACHINES[facts.device if facts else Device.CPU]
        weights = facts.weight_bytes if facts else 0
        kv_token = facts.kv_block_bytes / facts.block_size if facts and facts.block_size else 0.0
        if weights > 0:
            step = machine.step + weights / machine.memory
            self.token = 2.0 * weights / machine.weight_bytes / machine.flops
            self.attention = kv_token / machine.weight_bytes * QUERY_HEADS * 2.0 / machine.flops
            sequence = USUAL_CONTEXT * kv_token / machine.memory + self.token
        else:
            step, sequence = UNKNOWN_STEP, UNKNOWN_SEQUENCE
            self.token, self.attention = UNKNOWN_PREFILL, 0.0
        self.prefill = Line(step, 1.0)  # over the operations' seconds, as guessed
        self.step = Line(step, sequence)
        self.transfer = Line(machine.handover, kv_token / machine.link or UNKNOWN_TRANSFER)


class CostModel:
    """One worker's speeds.

    The guess is a roofline (Williams, Waterman and Patterson, "Roofline", 2009) over a transformer's operations
    (Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1):

    - prefill is bound by compute: ``2 * parameters + 4 * layers * width * context`` operations a token, where ``layers
      * width`` is taken from the KV cache's bytes a token (``2 * layers * width / QUERY_HEADS`` numbers); a step also
      reads all weights once;
    - a decode step is bound by memory: all weights once, and the KV of each sequence;
    - a transfer is its bytes over the link, and a hand-over's fixed part.

    What workers took corrects it: ``peers`` for all that are alike, a factor for this one.
    """

    __slots__ = ("_steps", "peers", "prefill", "prefill_factor", "step", "step_factor", "transfer")

    def __init__(self, facts: EngineFacts | None = None, peers: Peers | None = None) -> None:
        self.peers = peers or Peers(facts)
        self.prefill_factor = 1.0  # those of the paces: all that scoring a worker needs of them, at hand
        self.step_factor = 1.0
        self._steps = 0
        self.prefill = Pace(self.peers.prefill)
        self.step = Pace(self.peers.step)
        self.transfer = Pace(self.peers.transfer)

    def ready_seconds(self, backlog: int, tokens: int, context: int, weight: float = 1.0) -> float:
        """To compute ``tokens`` prompt tokens that no cache has, after ``context`` that one has, behind ``backlog`` of
        other prompts; the time for its own counts ``weight`` times."""
        peers = self.peers
        line = peers.prefill
        units = backlog * (peers.token + peers.attention * USUAL_CONTEXT)
        units += weight * tokens * (peers.token + peers.attention * (context + 0.5 * tokens))
        return self.prefill_factor * (weight * line.fixed + line.slope * units)

    def prefill_seconds(self, tokens: int, context: int = 0) -> float:
        """To compute ``tokens`` prompt tokens that no cache has, after ``context`` that one has."""
        return self.ready_seconds(0, tokens, context)

    def backlog_seconds(self, tokens: int) -> float:
        """To compute ``tokens`` of several prompts, one after the other."""
        return self.ready_seconds(tokens, 0, 0, 0.0)

    def step_seconds(self, running: int) -> float:
        """One decode step of ``running`` sequences."""
        return self.step.at(running)

    def slowdown_seconds(self, running: int) -> float:
        """What ``running`` sequences add to a decode step of one more."""
        return self.step_factor * self.peers.step.slope * running

    def transfer_seconds(self, tokens: int) -> float:
        """To fetch the KV of ``tokens`` from a prefill worker."""
        return self.transfer.at(tokens)

    def saw_prefill(self, tokens: int, seconds: float, context: int = 0) -> None:
        """The worker computed ``tokens`` uncached prompt tokens in ``seconds``, queueing not counted."""
        peers = self.peers
        self.prefill.saw(tokens * (peers.token + peers.attention * (context + 0.5 * tokens)), seconds)
        self.prefill_factor = self.prefill.factor

    def saw_step(self, running: int, seconds: float) -> None:
        """A step that computed one token for each of ``running`` sequences took ``seconds``."""
        self._steps += 1
        if self._steps < ALL_STEPS or self._steps % SOME_STEPS == 0:
            self.step.saw(running, seconds)
            self.step_factor = self.step.factor

    def saw_transfer(self, tokens: int, seconds: float) -> None:
        """The KV of ``tokens`` was there ``seconds`` after the hand-over."""
        self.transfer.saw(tokens, seconds)

    def anew(self) -> None:
        """What was learned of this worker is forgotten: it is thought to be as its peers."""
        self._steps = 0
        self.prefill, self.step, self.transfer = (
            Pace(self.peers.prefill),
            Pace(self.peers.step),
            Pace(self.peers.transfer),
        )
        self.prefill_factor, self.step_factor = 1.0, 1.0

    def idle(self, seconds: float) -> None:
        """The worker had nothing to do for so long."""
        self.prefill.fade(seconds)
        self.step.fade(seconds)
        self.transfer.fade(seconds)
        self.prefill_factor, self.step_factor = self.prefill.factor, self.step.factor
