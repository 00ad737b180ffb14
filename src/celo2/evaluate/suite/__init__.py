"""Suites of benchmark tasks: specification, results, storage, and the engines that train them."""
