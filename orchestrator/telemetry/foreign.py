"""vLLM's logging, taken over: it installs a handler of its own wherever it is imported.

A gateway holds what clients write, so from the moment it serves, lines of other libraries lose their words (``hush``).
A worker's engine sees tokens and sampling parameters: it keeps its sentences (how long a start took, why it failed) but
not its dump of a step that failed, which lists what the requests in it asked for.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
from collections.abc import MutableMapping
from pathlib import Path

_ENGINE_CONFIG = Path(__file__).with_name("engine_logging.json")
_LEVEL = "VLLM_LOGGING_LEVEL"
_CONFIGURE = "VLLM_CONFIGURE_LOGGING"
_CONFIG_PATH = "VLLM_LOGGING_CONFIG_PATH"
_TELLS_REQUESTS = ("DEBUG", "NOTSET")

_hushed = False


def take_over_vllm(engine: bool, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Makes vLLM log by Segue's rules, here and in the processes that it starts from here.

    Args:
        engine: whether this process is a worker's, whose engine may say from INFO up what it does; else vLLM's
            loggers hand on to the root's handler, which is heard from WARNING up.

    Returns:
        Whether the environment asked for vLLM's DEBUG lines, which hold whole requests: it no longer does.
    """
    asked_for_requests = environ.get(_LEVEL, "").upper() in _TELLS_REQUESTS
    if asked_for_requests:
        environ[_LEVEL] = "INFO"
    environ[_CONFIGURE] = "1" if engine else "0"
    if engine:
        environ[_CONFIG_PATH] = str(_ENGINE_CONFIG)
        logging.config.dictConfig(json.loads(_ENGINE_CONFIG.read_text()))
    else:
        environ.pop(_CONFIG_PATH, None)
        logger = logging.getLogger("vllm")
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    return asked_for_requests


def hush(on: bool = True) -> None:
    """From here on clients write to this process: lines of other libraries say where, and of which error, no more."""
    global _hushed
    _hushed = on


def hushed() -> bool:
    """Whether ``hush`` was called."""
    return _hushed
