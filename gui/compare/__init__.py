"""The Compare tab: several plans side by side."""
