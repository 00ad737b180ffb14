"""Analysis of a suite's runs: statistics, standings, summaries, and caveats."""
