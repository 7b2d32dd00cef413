"""Level 1 and all the arithmetic: pure functions from a scenario to a footprint."""
