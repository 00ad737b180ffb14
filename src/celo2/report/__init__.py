"""Building blocks shared by all reports: HTML pages, figures, formatting of numbers and labels."""
