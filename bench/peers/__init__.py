"""Other servers of models with the same one: what runs under their own interpreters."""
