"""What really happens: the worker process and everything around it. No Qt."""
