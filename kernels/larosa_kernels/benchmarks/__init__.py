"""Latencies of the ops beside cuBLAS, launch shapes, profiles: `python -m larosa_kernels.benchmarks.NAME`.

They need a CUDA GPU, torch, triton and numpy. Whole models are timed by `python -m larosa.decode.benchmark`.
"""
