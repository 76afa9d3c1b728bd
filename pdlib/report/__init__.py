"""Score tables in; figures, tables and README's numbers out. Never imports torch."""
