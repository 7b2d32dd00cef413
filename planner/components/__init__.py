"""Bytes of each component, in closed form."""
