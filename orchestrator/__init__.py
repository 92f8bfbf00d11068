"""Segue: an inference cluster orchestrator that runs prefill and decode in separate worker pools."""
