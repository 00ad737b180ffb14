"""The update of `DTensor` parameters: sharding specs, batched collectives, owner-computed Newton–Schulz."""
