"""The networks of the published tasks as Flax modules; imported when a task is made: Flax is optional."""
