"""What clients talk to: OpenAI-compatible HTTP and typed gRPC, in front of a cluster that looks like one engine."""
