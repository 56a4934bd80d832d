"""The plugin host: discovery, loading, validation and the manager. Internal."""
