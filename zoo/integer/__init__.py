"""The same graph on integers only."""
