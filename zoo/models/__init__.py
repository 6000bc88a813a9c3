"""Float networks, one file each: ``build(**args) -> nn.Module`` with random weights."""
