"""The Monitor tab: this machine's GPUs over time."""
