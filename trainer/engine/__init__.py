"""Parallelism behind one small protocol: `plain` (accelerate) and `zero` (DeepSpeed)."""
