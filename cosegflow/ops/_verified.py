"""Which fast paths a committed result of `make gpu-check` has verified on hardware; not written by hand but by

python -m benchmarks.check.verified
"""

# (operation, path: "portable" or "hopper", architecture such as "sm_90")
VERIFIED: frozenset[tuple[str, str, str]] = frozenset()
