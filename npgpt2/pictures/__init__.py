"""Pictures of a model and of what it thinks: HTML files with nothing beside them, and PNG."""
