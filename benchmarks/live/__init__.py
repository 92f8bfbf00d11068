"""A real gateway, mock workers and clients, each in processes of their own on loopback, for benchmarks to drive."""
