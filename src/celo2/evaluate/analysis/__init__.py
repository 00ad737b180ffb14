"""From the records of a suite to its statements: statistics, standings, summaries, caveats."""
