"""The data set that comes with metarec; see SOURCE.md."""
