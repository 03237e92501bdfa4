"""From a text to what methods are calibrated on: documents, a token block, evidence that it is disjoint."""
