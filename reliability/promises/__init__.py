"""One module a promise: `TITLE`, and `check(full, folder)` that breaks things and says what came of it."""
