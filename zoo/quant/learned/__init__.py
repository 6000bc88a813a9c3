"""Quantizers whose range is learned in training; one file each, named by ``train: {quantizer: NAME}``."""
