"""Learned fake quantization in C++, compiled where it runs."""
