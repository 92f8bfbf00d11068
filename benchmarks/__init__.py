"""Programs that measure what docs/performance.md promises. Each tells its own command; none is part of the product."""
