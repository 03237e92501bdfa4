"""The settings of `conf/`, checked by pydantic before anything heavy is imported; neither torch nor Hydra is needed."""
