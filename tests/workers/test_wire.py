"""Requests and outputs survive the wire, and noise on it is told from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm.v1.outputs import LogprobsLists

from orchestrator.core.errors import ProtocolError
from tests.workers.support import make_request
from workers import wire


def test_a_request_survives() -> None:
    request = make_request("r", [1, 2, 3], max_tokens=5, stop_token_ids=[9], seed=4, transfer={"a": [[1, 2]]})
    again = wire.decode_request(wire.encode_request(request))
    assert again.request_id == "r"
    assert again.prompt_token_ids == [1, 2, 3]
    assert again.sampling_params == request.sampling_params
    assert wire.transfer_params(again) == {"a": [[1, 2]]}


@pytest.mark.parametrize("size", [8, 100_000], ids=["inline", "beside"])
def test_tensors_travel_with_it(size: int) -> None:
    request = make_request("r", [1, 2, 3])
    request.prompt_embeds = torch.arange(size, dtype=torch.float32)
    parts = wire.encode_request(request)
    assert all(isinstance(part, bytes) for part in parts)
    assert len(parts) == (2 if size == 100_000 else 1)
    again = wire.decode_request(parts).prompt_embeds
    assert again is not None
    assert torch.equal(again, request.prompt_embeds)


def test_outputs_survive() -> None:
    ids, values = np.arange(200, dtype=np.int32).reshape(2, 100), np.ones((2, 100), dtype=np.float32)
    output = wire.Output("r", [5, 6], new_logprobs=LogprobsLists(ids, values, np.array([1, 2])), stop_reason="end")
    again = wire.decode_outputs(wire.encode_outputs([output], 12.5))
    assert again.timestamp == 12.5
    assert again.outputs[0].new_token_ids == [5, 6]
    assert again.outputs[0].stop_reason == "end"
    assert again.outputs[0].new_logprobs is not None
    assert np.array_equal(again.outputs[0].new_logprobs.logprob_token_ids, ids)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"\xc1"],
        [b"\x01"],
        [b"\x92\xa1r\xa1s"],
        [wire.encode_request(make_request("r", [1]))[0][:-3]],
    ],
    ids=["nothing", "empty", "reserved", "number", "wrong types", "cut short"],
)
def test_noise_is_a_protocol_error(parts: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(parts)


def test_a_tensor_whose_bytes_are_missing_is_a_protocol_error() -> None:
    request = make_request("r", [1, 2, 3])
    request.prompt_embeds = torch.zeros(100_000)
    parts = wire.encode_request(request)
    for damaged in ([parts[0]], [parts[0], b"short"]):
        with pytest.raises(ProtocolError):
            wire.decode_request(damaged)


def test_what_is_wrong_with_noise_does_not_quote_it() -> None:
    with pytest.raises(ProtocolError) as error:
        wire.decode_request([b"\x92\xacDear diary, \x01"])
    assert "diary" not in str(error.value)


def test_a_release_is_over_as_soon_as_it_comes() -> None:
    request = wire.decode_request(wire.encode_request(wire.release_request("x", {"remote_port": 1}, 2.0)))
    assert request.abort_immediately
    assert wire.transfer_params(request) == {"remote_port": 1}
