"""Speed and memory of the kernels, beside what else would do the job: ``python -m benchmarks --help``."""
