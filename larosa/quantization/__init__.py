"""Weights on a grid: rounded to nearest, or by a calibrated quantiser, after a method has turned them.

Nothing here but `model.py` and `calibrated.py` knows a model; `grid.py` knows torch alone, so the decoder can use it.
"""
