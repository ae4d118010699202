"""Many measurements become figures with intervals, and those one verdict. Knows neither models nor files."""
