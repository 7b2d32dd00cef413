"""The verbs that need no screen. Each module is one verb: it adds its options and runs."""
