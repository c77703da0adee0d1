"""How fast the package is, and against what: the naive mode, the measurements and their record.

Read in this order: `naive_cache`, `naive_network`, `naive`, `work`, `record`, `subjects`, `pairs`, `streamed`, `sweep`.
"""
