"""Float64 NumPy twins of the fast code, written from the specification and sharing no code with it."""
