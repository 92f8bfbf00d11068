"""Engine facts, load and transfers as they go over the session."""

from __future__ import annotations

from orchestrator.core.mirror import CacheNews
from orchestrator.core.types import EngineFacts, Load
from orchestrator.proto import worker_pb2
from workers.ports import Transfers


def facts_message(facts: EngineFacts) -> worker_pb2.EngineFacts:
    return worker_pb2.EngineFacts(
        block_size=facts.block_size,
        kv_blocks_total=facts.kv_blocks_total,
        kv_block_bytes=facts.kv_block_bytes,
        max_model_len=facts.max_model_len,
        max_num_seqs=facts.max_num_seqs,
        tasks=facts.tasks,
        kv_events=facts.kv_events,
        weight_bytes=facts.weight_bytes,
        device=facts.device.value,
        restores=facts.restores,
        kv_format=facts.kv_format,
    )


def cache_message(news: CacheNews) -> worker_pb2.CacheChange:
    return worker_pb2.CacheChange(cleared=news.cleared, removed=news.removed, stored=news.stored)


def load_message(load: Load) -> worker_pb2.Load:
    return worker_pb2.Load(
        running=load.running,
        waiting=load.waiting,
        kv_blocks_used=load.kv_blocks_used,
        kv_blocks_total=load.kv_blocks_total,
    )


def transfers_message(transfers: Transfers) -> worker_pb2.Transfers:
    return worker_pb2.Transfers(
        count=transfers.count, bytes=transfers.bytes, seconds=transfers.seconds, failed=transfers.failed
    )
