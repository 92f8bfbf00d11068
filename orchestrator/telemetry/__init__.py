"""Spans, metrics and logs of every process, none of which ever carries what a user wrote or a model answered."""
