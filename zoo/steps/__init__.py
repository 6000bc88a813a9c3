"""Steps of a recipe: one file, one frozen dataclass, ``__call__(net, ctx) -> net``."""
