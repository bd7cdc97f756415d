"""A small synthetic CC-CCII with known lesions and defects."""
