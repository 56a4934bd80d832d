"""The recipe language: TOML files -> checked stages. Internal."""
