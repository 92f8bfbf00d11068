"""A brain with a journal around it, as in a gateway, and what Cluster.Explain makes of it."""

from __future__ import annotations

from random import Random

from google.protobuf import json_format

from orchestrator.core import messages as m
from orchestrator.core.brain import Brain
from orchestrator.core.spec import Role
from orchestrator.proto import cluster_pb2
from orchestrator.record.codec import encode
from orchestrator.record.journal import Journal
from orchestrator.record.stories import Found
from orchestrator.record.story import RequestStory
from tests.core.support import worker
from tests.record.world import APART


class Gateway:
    """``workers`` serve both halves."""

    def __init__(self, *workers: str, name: str = "gateway-0", journal: Journal | None = None) -> None:
        self.name = name
        self.journal = journal or Journal()
        self.brain = Brain.of(APART, Random(0))
        self.step = self.journal.around(self.brain.step)
        for worker_id in workers:
            self.step(m.WorkerUp(worker(worker_id, Role.SERVE)), 0.0)

    def find(self, asked: str) -> Found:
        return self.journal.stories.find(asked, self.name, waits=self.brain.waits)

    def finish(self, request_id: str, tenant: str = "") -> None:
        """A request comes and is answered."""
        self.step(m.Arrived(request_id, "m", 8, blocks=(1, 2), tenant=tenant), 1.0)
        self.step(m.DecodeEnded(f"{request_id}~d1", 1), 2.0)

    def explain(self, asked: str) -> cluster_pb2.ExplainResponse:
        found = self.find(asked)
        stories = [message(story) for story in found.stories]
        return cluster_pb2.ExplainResponse(gateway=self.name, stories=stories, ambiguous=found.ambiguous)


def message(story: RequestStory) -> cluster_pb2.RequestStory:
    return json_format.ParseDict(encode(RequestStory, story, whole=True), cluster_pb2.RequestStory())
