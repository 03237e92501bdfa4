"""The Python interface: `larosa.sparsify`, its settings and its arguments."""
