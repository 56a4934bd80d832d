"""Tools for testing plugins: small fakes, and checks that a component keeps its contract.

Each check raises AssertionError with a sentence about what is wrong. `check` takes a component of
any kind; the specific checks have arguments for what only the author knows, such as whether a loss
may be negative.
"""

from kdcore.testing.any_kind import check
from kdcore.testing.data import check_data, check_tokenizer
from kdcore.testing.executors import check_executor
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens, tiny_llama, tiny_tokenizer
from kdcore.testing.losses import check_loss
from kdcore.testing.patches import check_patch
from kdcore.testing.rollouts import WritingRun, check_rollout, make_prompts
from kdcore.testing.runs import tiny_run
from kdcore.testing.selections import check_selection
from kdcore.testing.teachers import check_teacher
from kdcore.testing.watching import check_eval, check_logger

__all__ = [
    "TableTeacher",
    "WritingRun",
    "check",
    "check_data",
    "check_eval",
    "check_executor",
    "check_logger",
    "check_loss",
    "check_patch",
    "check_rollout",
    "check_selection",
    "check_teacher",
    "check_tokenizer",
    "make_batch",
    "make_prompts",
    "make_tokens",
    "tiny_llama",
    "tiny_run",
    "tiny_tokenizer",
]
