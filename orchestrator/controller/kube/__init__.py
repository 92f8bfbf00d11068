"""Kubernetes, where the cluster runs on it: one controller at a time, events and a status for its operators."""
