"""What a model needs, what devices there are, and where each replica goes: pure, and run once a plan."""
