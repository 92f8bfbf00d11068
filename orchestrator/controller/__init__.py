"""A Ray actor that observes the cluster, plans and applies; gateways watch the fleet through it."""
