"""What methods are calibrated on: statistics of the calibration tokens on the dense model, computed once and cached."""
