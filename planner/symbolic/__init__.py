"""One implementation for a point and for a grid: what a function of whole numbers did, as a program of its own."""
