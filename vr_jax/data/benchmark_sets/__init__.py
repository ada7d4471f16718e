"""Converters from the released files of public video benchmarks to items (`benchmark_item`)."""
