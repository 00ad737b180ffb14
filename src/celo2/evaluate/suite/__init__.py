"""Suites of tasks: specification, records of runs, their store, and the engines that train them."""
