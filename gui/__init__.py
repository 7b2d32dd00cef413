"""The window. It shows what planner, probes and resources know, and computes nothing of its own."""
