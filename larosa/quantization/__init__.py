"""Quantised weights: rounded to nearest or by a calibrated quantiser, after a method has rotated them.

The formats are in :mod:`larosa.models.formats`, which imports torch only, so that the decoder can use it.
"""
