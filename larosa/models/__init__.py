"""Which model: its architecture and shape, where its weights come from, loading, precision, weight formats.

Nothing is imported here: the decoder takes shapes and formats from this folder where there is no pydantic.
"""
