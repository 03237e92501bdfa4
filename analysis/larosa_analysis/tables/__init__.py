"""The paper's tables, each from a specification: printed numbers beside what our records say."""
