"""The verbs that come with kdcore, a file each. A verb is a typer function behind an entry point of
the group `kdcore.commands`; it is loaded when it is typed.
"""
