"""What a worker won't pass on to its engine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestrator.core.errors import ProtocolError
from orchestrator.core.types import EngineFacts
from tests.workers.support import make_request
from workers import wire
from workers.intake import fault_of, transfer_fault

FACTS = EngineFacts(16, 64, 1024, 512, 8)
VOCABULARY = 1000


def fault(**sampling: Any) -> str | None:
    """Of a request whose sampling parameters were changed on their way: vLLM's own constructor would refuse them."""
    (packed,) = wire.encode_request(make_request("w", [5, 6]))
    plain = msgspec.msgpack.decode(packed)
    plain[3] |= sampling
    try:
        request = wire.decode_request([msgspec.msgpack.encode(plain)])
    except ProtocolError as error:
        return str(error)
    return fault_of("w", request, FACTS, VOCABULARY)


def test_a_request_of_a_front_end_passes() -> None:
    assert fault() is None
    assert fault(temperature=0.5, stop_token_ids=[7], logit_bias={5: 1.0}, logprobs=3) is None


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"top_p": float("inf")},
        {"top_k": -7},
        {"n": 0},
        {"max_tokens": 0},
        {"max_tokens": None},
        {"logprobs": 10_000},
        {"repetition_penalty": 0.0},
        {"stop_token_ids": [VOCABULARY]},
        {"allowed_token_ids": [-1]},
        {"logit_bias": {VOCABULARY: 1.0}},
        {"logprob_token_ids": [1 << 40]},
        {"_all_stop_token_ids": [-1]},
        {"_bad_words_token_ids": [[5, VOCABULARY]]},
    ],
    ids=str,
)
def test_sampling_that_no_front_end_makes_is_refused(sampling: dict[str, Any]) -> None:
    found = fault(**sampling)
    assert found
    assert "nan" not in found, "in words without any of its content"


@pytest.mark.parametrize(
    ("host", "port", "fine"),
    [
        ("127.0.0.1", 9, True),
        ("prefill-0.pods", 65535, True),
        ("fe80::1", 9, True),
        ("", 9, False),
        ("x" * 300, 9, False),
        ("a..b", 9, False),
        ("\ud800", 9, False),
        ("127.0.0.1", 0, False),
        ("127.0.0.1", 1 << 31, False),
        ("127.0.0.1", -1, False),
    ],
)
def test_a_prefill_is_collected_from_where_one_can_be(host: str, port: int, fine: bool) -> None:
    transfer = {"remote_engine_id": "x", "remote_request_id": "y", "remote_block_ids": [1]}
    assert (transfer_fault({**transfer, "remote_host": host, "remote_port": port}) is None) is fine


@pytest.mark.parametrize(
    "field", [{"data_parallel_rank": 3}, {"client_index": 7}, {"resumable": True}, {"abort_immediately": True}], ids=str
)
def test_fields_of_an_engines_own_are_refused(field: dict[str, Any]) -> None:
    request = make_request("w", [5])
    for name, value in field.items():
        setattr(request, name, value)
    assert next(iter(field)) in str(fault_of("w", request, FACTS, VOCABULARY))
