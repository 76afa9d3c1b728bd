"""Student and solution sheets."""
