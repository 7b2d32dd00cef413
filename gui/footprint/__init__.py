"""The Footprint tab: the verdict, the stacked bars and the table of components."""
