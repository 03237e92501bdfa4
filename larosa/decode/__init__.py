"""The fast decoder: the sparse model's own weights, one token at a time, through fused kernels in one CUDA graph.

Nothing here imports pydantic, Hydra or W&B: speed is measured where only torch, triton and transformers exist.
"""
