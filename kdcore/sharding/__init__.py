"""Models whose weights are divided between the processes (FSDP2). Internal.

Each layer is gathered while it runs. Every run of a sharded trunk is therefore a collective call:
all processes must make the same number of them, in the same order. `turns` fills up.
"""
