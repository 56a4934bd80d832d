"""What random recipes need besides kdcore: prompts that are not learned, weights at the start."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors.torch import save_file

from kdcore import Data, Rows, Run, component, hookimpl, pack_documents


@component
class Prompted(Data):
    """Each line is a document; the first third of its tokens is a prompt, which is not learned."""

    name = "prompted"
    path: str
    validation: str

    def texts(self, split: str) -> Iterable[str]:
        """The lines."""
        return Path(self.path if split == "train" else self.validation).read_text().splitlines()

    def make_rows(self, split, tokenizer, *, seed, epoch) -> Rows:
        """The lines as ids, laid as the options say."""
        end = [tokenizer.eos_token_id] * self.eos

        def documents():
            for ids in tokenizer(list(self.texts(split)))["input_ids"]:
                prompt = len([*ids, *end]) // 3
                yield {
                    "input_ids": [*ids, *end],
                    "labels": [*[-100] * prompt, *[*ids, *end][prompt:]],
                }

        return pack_documents(self, split, documents, key=f"{self.path} {self.eos}")


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The one above."""
    return [Prompted]


@hookimpl
def kdcore_run_start(run: Run) -> None:
    """Keep the weights that training begins with."""
    if run.main and run.step == 0:
        weights = {n: p.detach().clone() for n, p in run.student.named_parameters()}
        save_file(weights, run.folder / "begin.safetensors")
