"""Formats, quantizers, observers and the fake-quantized layers."""
