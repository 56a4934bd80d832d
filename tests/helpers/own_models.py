"""What a user may have: a teacher, a student, and a file of questions with answers."""

import json

import tiny

ROWS = [
    {"instruction": f"What is {n} and {n + 1}?", "output": f"It is {2 * n + 1}, as {n} is even."}
    for n in range(120)
]


def lay_own_models(folder):
    """`teacher`, `student` and `answers.jsonl`, as the documents name them."""
    tiny.save(folder / "teacher", seed=1, max_position_embeddings=512)
    tiny.save(folder / "student", seed=2, max_position_embeddings=256)
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
