"""Models and baselines over annotated data sets, under named protocols."""
