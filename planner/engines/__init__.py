"""How each framework arranges the components in time: one file an engine."""
