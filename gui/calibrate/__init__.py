"""The Calibrate window: measure what this machine adds, judge it, use it or take it back."""
