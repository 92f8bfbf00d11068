"""A model's source -> files that an engine can load. Makes each model once and keeps it in a cache on disk."""

from orchestrator.models.prepare import prepare

__all__ = ["prepare"]
