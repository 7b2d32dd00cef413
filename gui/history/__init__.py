"""The History tab: every run that was measured or rehearsed."""
