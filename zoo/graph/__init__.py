"""From a float network to a flat graph whose every node is a module of a closed vocabulary."""
