"""The form: every field of a scenario that can be edited."""
