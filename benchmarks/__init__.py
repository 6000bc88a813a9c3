"""Speed, measured: never asserted in a test."""
