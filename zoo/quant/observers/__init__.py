"""Range estimators, one file each: ``estimate(...)`` -> (scale, zero point)."""
