"""One folder an op: reference.py in torch, kernel.py in Triton, api.py with the checks and the torch.library op."""
