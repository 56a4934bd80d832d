"""Recipes drawn at random: the same seed gives the same recipe. Paths are those of `random_world`.

Loss, selection, what terms see, schedules, teachers, ensembles, caches, rows, micro-batches,
processes, architectures and patches are drawn by themselves, so that all combinations come.
"""

import random
from dataclasses import dataclass

import random_world as world

KINDS = tuple(world.SHAPES)
TEMPERATURES = (0.5, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Case:
    """A recipe, and how it is run."""

    seed: int
    recipe: dict
    processes: int
    resume: int  # the step whose checkpoint the second run goes on from
    again: bool  # whether caches are gone by then

    def __str__(self):
        return f"seed {self.seed}"


def draw(seed, processes=1):
    """The case of this number."""
    rng = random.Random(f"recipe {seed}")
    steps = rng.randint(2, 5)
    recipe = {"name": f"random-{seed}", "seed": rng.randint(0, 3), "data": data(rng)}
    recipe["student"] = student(rng)
    if "config" in recipe["student"]:
        recipe["tokenizer"] = {"use": "hf", "model": world.model_folder("llama", seed=0)}
    recipe |= taught(rng)
    recipe["train"] = train(rng, steps)
    return Case(seed, recipe, processes, recipe["train"]["save_every"], rng.random() < 0.3)


def data(rng):
    number = rng.randrange(world.CORPORA)
    use = rng.choice(("text", "text", "prompted"))
    lined = {"separator": "\n"} if use == "text" else {}
    return {
        "use": use,
        "path": f"texts/train-{number}.txt",
        "validation": f"texts/validation-{number}.txt",
        **lined,
        "block": rng.choice((5, 12, 16, 32)),
        "rows": rng.choice(("one", "chunk", "pack", "pack")),
        "cut": rng.choice(("left", "right", "split")),
        "eos": rng.random() < 0.8,
    }


def student(rng):
    kind, tied = rng.choice(KINDS), rng.random() < 0.3
    if rng.random() < 0.15:
        config = {"model_type": kind, **world.config_of(kind, tied=tied)}
        del config["vocab_size"]
        return {"config": config}
    rows = world.VOCABULARY + rng.choice((0, 0, 3))
    made = {"model": world.model_folder(kind, seed=0, rows=rows, tied=tied)}
    if rng.random() < 0.25:
        lora = {"use": "lora", "rank": rng.choice((1, 3)), "alpha": rng.choice((2.0, 6.0))}
        made["patch"] = [lora]
    if rng.random() < 0.15:
        made["attention"] = "eager"
    return made


def live(rng):
    """A model, or several as one."""
    if rng.random() < 0.7:
        return model(rng)
    members = [model(rng) for _ in range(rng.randint(1, 3))]
    made = {"use": "ensemble", "members": members, "average": rng.choice(("logits", "probs"))}
    if rng.random() < 0.6:
        made["weights"] = [rng.choice((0.5, 1.0, 3.0)) for _ in members]
    return made


def model(rng):
    kind = rng.choice(KINDS)
    rows = world.VOCABULARY + rng.choice((0, 7))
    made = {"seed": rng.randint(1, 2), "dropout": rng.choice((0.0, 0.5)), "rows": rows}
    return {"use": "hf", "model": world.model_folder(kind, **made)}


def cached(rng, kind):
    made = {"use": "cached", "kind": kind, "teacher": live(rng)}
    if kind == "topk":
        made["k"] = rng.choice((1, 4, 20, 50))
    if kind == "sampled":
        made |= {"draws": rng.choice((3, 12, 60)), "seed": rng.randint(0, 2)}
    if rng.random() < 0.25:
        made["context"] = "document"
    return made


def taught(rng):
    """What is learned, from whom, and on which tokens."""
    teacher = rng.choice((None, *["live"] * 4, "topk", "sampled"))
    made = {}
    if teacher:
        made["teacher"] = live(rng) if teacher == "live" else cached(rng, teacher)
    if rng.random() < 0.6:
        made["selection"] = selection(rng, teacher)
    terms = [loss(rng, teacher, "selection" in made) for _ in range(rng.randint(1, 3))]
    if teacher and all(term["use"] == "ce" for term in terms):
        terms[0] = divergence(rng, teacher) | {
            key: value for key, value in terms[0].items() if key != "use"
        }
    return made | {"loss": terms}


def selection(rng, teacher):
    use = rng.choice(("rho", "rho", "hardest", "entropy", "random"))
    made = {"use": use, "keep": rng.choice((0.1, 0.3, 0.55, 0.8, 1.0))}
    if rng.random() < 0.1:
        made["keep"] = {"start": 1.0, "end": 0.3}
    if use == "rho":
        made["reference"] = live(rng) if rng.random() < 0.6 else cached(rng, "nll")
    if use == "entropy" and teacher in ("live", "topk") and rng.random() < 0.5:
        made["of"] = "teacher"
    if rng.random() < 0.3:
        made["scope"] = "micro_batch"
    return made


def loss(rng, teacher, selects):
    use = divergence(rng, teacher) if teacher and rng.random() < 0.7 else {"use": "ce"}
    made = use | {"weight": weight(rng)}
    if selects:
        made["on"] = rng.choice(("kept", "kept", "all", "dropped"))
    return made


def weight(rng):
    if rng.random() < 0.7:
        return rng.choice((0.25, 1.0, 2.0))
    start, end = rng.choice(((0.0, 1.0), (1.0, 0.0), (2.0, 0.5)))
    return {"start": start, "end": end, "until": rng.choice((0.3, 0.5, 1.0))}


def divergence(rng, teacher):
    if teacher == "sampled":
        return {"use": "kl"}  # what is linear in the teacher
    others = [name for name in OPTIONS if name not in ("kl", "renormalised")]
    of_some_ids = ["renormalised"] if teacher == "topk" else []
    use = rng.choice((*others, "kl", "kl", *of_some_ids))
    made = {"use": use, "temperature": rng.choice(TEMPERATURES)}
    if teacher == "live" and rng.random() < 0.2:
        made["temperature"] = {"start": 3.0, "end": 0.5, "until": rng.choice((0.4, 1.0))}
    if use != "tvd" and rng.random() < 0.3:
        made["scale_by_t2"] = False
    return made | {key: rng.choice(values) for key, values in OPTIONS[use].items()}


OPTIONS = {
    "kl": {},
    "reverse-kl": {},
    "skew-kl": {"skew": (0.0, 0.1, 0.6)},
    "skew-reverse-kl": {"skew": (0.0, 0.1, 0.6)},
    "jsd": {"beta": (0.0, 0.1, 0.5, 0.9, 1.0), "normalise": (False, True)},
    "tvd": {},
    "symmetric-kl": {"forward": (0.0, 0.3, 1.0)},
    "adaptive-kl": {"head": (0.3, 0.5, 0.8), "form": ("head", "authors")},
    "entropy-opd": {"threshold": (0.8, 2.0)},
    "alpha-beta": {"alpha": (0.2, 0.5, 1.0), "beta": (0.0, 0.7)},
    "renormalised": {"over": ("all", "known")},
}


def train(rng, steps):
    batch = rng.randint(1, 8)
    made = {
        "lr": rng.choice((0.003, 0.02)),
        **duration(rng, steps, batch),
        "batch": batch,
        "schedule": rng.choice(("constant", "cosine", "linear", "constant_with_warmup")),
        "min_lr": rng.choice((0.0, 0.2)),
        "clip": rng.choice((0.0, 0.5, 1.0)),
        "weight_decay": rng.choice((0.0, 0.1)),
        "checkpointing": rng.random() < 0.15,
        "workers": rng.choice((0, 0, 1)),
        "eval_first": rng.random() < 0.3,
        "eval_rows": rng.choice((6, "all")),
        "log_every": 1,
        "save_every": rng.randint(1, steps - 1),
        "save_keep": 5,
    }
    if made["schedule"] != "constant":
        made["warmup"] = rng.choice((0, 1, 0.4))
    if rng.random() < 0.7:
        made["micro_batch"] = rng.randint(1, batch)
    if rng.random() < 0.7:
        made["chunk"] = rng.choice((1, 7, 40))
    return made | optimizer(rng)


def duration(rng, steps, batch):
    use = rng.choice(("steps", "steps", "steps", "tokens"))
    return {use: steps if use == "steps" else steps * batch * 8}


def optimizer(rng):
    if rng.random() < 0.4:
        return {"optimizer": "sgd"}
    # Where a gradient is nothing but rounding, a small eps would make a whole step of it.
    return {"optimizer": "adamw", "eps": 1e-3, "betas": rng.choice(([0.9, 0.999], [0.5, 0.9]))}
