"""What the oracle makes of a recipe: the models of its tables in float64, and what they say."""

import oracle_teachers
import oracle_training
import random_world as world
import torch
from oracle_rows import alone, documents
from oracle_teachers import Average, Known, Model, TooClose
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["MismatchError", "TooClose", "judged", "same"]


class MismatchError(AssertionError):
    """The engine and the oracle differ, or a run and its continuation."""


def same(what, found, expected, tolerance):
    apart = float((found - expected).abs().max())
    if not apart <= tolerance:
        raise MismatchError(f"{what}: {apart:.3g} apart")


def judged(case, folder, dtype=torch.float64):
    """What the oracle makes of the recipe, and the weights at the end."""
    recipe = case.recipe
    student = student_of(recipe, load_file(folder / "begin.safetensors")).to(dtype)
    vocabulary = vocabulary_of(recipe, student.config.vocab_size)
    results = oracle_training.train(
        recipe,
        student,
        world.LETTERS,
        vocabulary,
        _answers(recipe, vocabulary),
        _losses(recipe, vocabulary),
        case.processes,
    )
    for module in list(student.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return results, student.state_dict()


def student_of(recipe, begin):
    """The student in float64 as training begins with it."""
    table = recipe["student"]
    fresh = "config" in table
    student = _fresh(table["config"], begin) if fresh else world.loaded(table["model"])
    student = student.double().eval()
    if "patch" in table:
        _adapt(student, table["patch"][0], begin)
    else:
        for name, parameter in student.named_parameters():
            same(f"the start's {name}", begin[name].double(), parameter.detach(), 0)
    return student


def _fresh(table, begin):
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"vocab_size": world.VOCABULARY, "eos_token_id": 0, "pad_token_id": None}
    options |= {"bos_token_id": None} | {k: v for k, v in table.items() if k != "model_type"}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(table["model_type"], **options))
    made.load_state_dict(begin, strict=False)
    return made


class Adapted(nn.Module):
    """W + (alpha / rank) B A."""

    def __init__(self, a, b, factor, transposed):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.factor, self.transposed = factor, transposed

    def forward(self, weight):
        added = self.factor * self.b @ self.a
        return weight + (added.T if self.transposed else added)


def _adapt(student, lora, begin):
    """Every linear layer but the head; of a fresh adapter B is zero."""
    from transformers.pytorch_utils import Conv1D

    student.requires_grad_(False)
    head = student.get_output_embeddings()
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            a, b = (
                begin[f"base_model.model.{name}.lora_{one}.default.weight"].double() for one in "AB"
            )
            assert not b.any() and len(a) == lora["rank"]
            adapted = Adapted(a, b, lora["alpha"] / lora["rank"], isinstance(module, Conv1D))
            parametrize.register_parametrization(module, "weight", adapted)
    student.requires_grad_(False)
    for module in student.modules():
        if isinstance(module, Adapted):
            module.requires_grad_(True)


def vocabulary_of(recipe, rows):
    """The ids that all tokenizers have, and all heads a row for."""
    ids = world.ids_of(recipe.get("tokenizer", recipe["student"])["model"])
    found = [ids, rows]
    for teacher in (recipe.get("teacher"), recipe.get("selection", {}).get("reference")):
        for folder in models_of(teacher) if teacher else ():
            found += [world.ids_of(folder), world.plain(folder).config.vocab_size]
    return min(found)


def models_of(table):
    if "teacher" in table:
        return models_of(table["teacher"])
    return [table["model"]] if "model" in table else [m["model"] for m in table["members"]]


def teacher_of(table, vocabulary):
    if table["use"] == "ensemble":
        members = [teacher_of(member, vocabulary) for member in table["members"]]
        return Average(members, table.get("weights"), table["average"])
    return Model(world.plain(table["model"]), vocabulary)


def _shown(recipe, table, vocabulary):
    """Logits [predictions, V] of each row, in the context that the teacher is shown."""
    teacher = teacher_of(table.get("teacher", table), vocabulary)
    if table.get("context") != "document":

        def logits(rows):
            found = zip(teacher.logits(rows), rows, strict=True)
            return [one[[p for p, _ in row.predictions()]] for one, row in found]

        return logits

    def in_windows(rows):
        known = teacher_logits(recipe["data"], teacher)
        places = [[row.cells[p + 1] for p, _ in row.predictions()] for row in rows]
        return [
            torch.stack([known[cell.document, cell.offset] for cell in some])
            if some
            else torch.zeros(0, vocabulary, dtype=torch.float64)
            for some in places
        ]

    return in_windows


def teacher_logits(data, teacher, length=64):
    """What is said of each token by the window that tells of it: it begins with the text, or where
    at least half a window lies before.
    """
    texts = documents(data, "train", world.LETTERS)
    if data["rows"] == "chunk":
        texts = [[cell for text in texts for cell in text]]
    known = {}
    for text in texts:
        for begin in range(0, len(text), length // 2):
            window = text[begin : begin + length]
            (logits,) = teacher.logits([alone(window)])
            for at in range(1, len(window)):
                known.setdefault((window[at].document, window[at].offset), logits[at - 1])
    return known


def _answers(recipe, vocabulary):
    table = recipe.get("teacher")
    if table is None:
        return None
    shown = _shown(recipe, table, vocabulary)

    def answers(rows):
        return [_known(table, *both) for both in zip(shown(rows), rows, strict=True)]

    return answers


def _known(table, logits, row):
    if table["use"] != "cached":
        return Known(logits)
    if table["kind"] == "topk":
        return oracle_teachers.likeliest(logits, min(table["k"], logits.shape[1] - 1))
    cells = [row.cells[position + 1] for position, _ in row.predictions()]
    return oracle_teachers.drawn(logits, cells, table["draws"], table["seed"])


def _losses(recipe, vocabulary):
    table = recipe.get("selection", {}).get("reference")
    if table is None:
        return None
    shown = _shown(recipe, table, vocabulary)

    def losses(rows):
        labels = [
            torch.tensor([y for _, y in row.predictions()], dtype=torch.int64) for row in rows
        ]
        each = zip(shown(rows), labels, strict=True)
        return [oracle_teachers.losses(*both) for both in each]

    return losses
