"""The Commands tab: what to type, or to save, to run the plan."""
