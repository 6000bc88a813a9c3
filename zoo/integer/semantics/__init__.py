"""How an exact accumulator becomes a code: one file per named semantics (docs/semantics.md)."""
