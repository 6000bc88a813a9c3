"""The same work in other quantization libraries; see ``benchmarks/README.md``."""
