"""The checkpoint folder: packed integers, JSON, a card, and a manifest that is checked before anything is parsed."""
