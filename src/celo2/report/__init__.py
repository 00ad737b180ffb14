"""Parts that all reports share: HTML pages, figures, formatting of numbers and labels."""
