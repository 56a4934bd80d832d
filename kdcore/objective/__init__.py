"""The objective: chunked losses, teachers, selection. Internal."""
