"""Asking a run: SQL, views, differences, exports."""
