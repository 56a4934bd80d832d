"""Faults of one line, to be put into a copy of the engine and the plugins: each must fail a test.

`python benchmarks/robustness/faults.py` (or `make faults`) puts them in one by one.
A fault is a line as it stands, without its indentation, what stands there instead, and the tests
that are to notice.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    line: str
    instead: str
    tests: str  # what pytest is called with, below tests/
    device: bool = False  # the tests need a CUDA device: they run on the fake one

    def put_into(self, text):
        """The text with the fault; a line that is not there exactly once is an error."""
        lines = text.split("\n")
        places = [n for n, each in enumerate(lines) if each.strip() == self.line]
        if len(places) != 1:
            raise LookupError(f"{self.name}: {len(places)} lines in {self.file} are {self.line!r}")
        indentation = lines[places[0]].partition(self.line)[0]
        lines[places[0]] = indentation + self.instead
        return "\n".join(lines)


SHIFT = "shifted[:, :-1] = np.where(follows & real, self.labels[:, 1:], NOT_TRAINED)"
SELECTIONS = "unit/objective/test_objective_selections.py"

FAULTS = [
    # Which token is learned where
    Fault(
        "labels not shifted",
        "kdcore/data/collate.py",
        SHIFT,
        "shifted[:, :-1] = np.where(follows & real, self.labels[:, :-1], NOT_TRAINED)",
        "unit/data/test_collate.py",
    ),
    Fault(
        "labels shifted twice",
        "kdcore/data/collate.py",
        SHIFT,
        "shifted[:, :-2] = np.where((follows & real)[:, 1:], self.labels[:, 2:], NOT_TRAINED)",
        "unit/data/test_collate.py",
    ),
    Fault(
        "masked by pad id",
        "kdcore/data/collate.py",
        "mask = arrays.document >= 0",
        "mask = arrays.ids != 0",
        "unit/data/test_collate.py",
    ),
    Fault(
        "eos not trained",
        "kdcore/data/collate.py",
        SHIFT,
        "shifted[:, :-1] = np.where(follows & (self.labels[:, 1:] != 0), self.labels[:, 1:], -100)",
        "unit/data/test_collate.py end_to_end/test_faults.py",
    ),
    Fault(
        "padding selectable",
        "kdcore/data/collate.py",
        SHIFT,
        "shifted[:, :-1] = np.where(real, np.where(follows, self.labels[:, 1:], NOT_TRAINED), 0)",
        "unit/data/test_collate.py",
    ),
    Fault(
        "document boundary crossed by labels",
        "kdcore/data/collate.py",
        "follows = self.position[:, 1:] == self.position[:, :-1] + 1",
        "follows = True",
        "unit/data/test_collate.py",
    ),
    Fault(
        "document boundary crossed by attention",
        "kdcore/data/rows.py",
        '"position": within if pieces.isolated else _counted(lengths),',
        '"position": _counted(lengths),',
        "unit/data/test_rows.py",
    ),
    Fault(
        "no eos after a document",
        "kdcore/data/encoding.py",
        "return [int(tokenizer.eos_token_id)]",
        "return []",
        "unit/data/test_rows.py",
    ),
    # Models
    Fault(
        "use_cache left on",
        "kdcore/models/causal_lm.py",
        'arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": False}',
        'arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": True}',
        "unit/models/test_causal_lm.py",
    ),
    Fault(
        "teacher's vocabulary uncut",
        "kdcore/objective/teachers.py",
        "return upcast(checked[:, : batch.vocabulary])",
        "return upcast(checked)",
        "unit/objective/test_teachers.py",
    ),
    Fault(
        "student's vocabulary uncut",
        "kdcore/objective/chunked_loss.py",
        "used = None if computed is None else computed[: work.vocabulary]",
        "used = computed",
        "unit/objective/test_objective_heads.py",
    ),
    Fault(
        "teacher in training mode",
        "kdcore/objective/teachers.py",
        "module.eval()",
        "module.train()",
        "unit/objective/test_teachers.py",
    ),
    Fault(
        "student in evaluation mode while it trains",
        "kdcore/training/trainer.py",
        "self.objective.train()",
        "self.objective.eval()",
        "unit/training/test_trainer.py",
    ),
    Fault(
        "teacher one position ahead",
        "kdcore/objective/chunked_loss.py",
        "teacher = None if work.teacher is None else work.teacher(rows)",
        "teacher = None if work.teacher is None else work.teacher(rows + 1)",
        "unit/objective/test_objective.py",
    ),
    # Losses
    Fault(
        "T^2 dropped",
        "plugins/kdcore_losses/base.py",
        "return temperature**2 if self.scale_by_t2 else 1.0",
        "return 1.0",
        "plugins/test_losses.py",
    ),
    Fault(
        "temperature on one side",
        "plugins/kdcore_losses/base.py",
        "log_q = log_probabilities(student, temperature)",
        "log_q = log_probabilities(student, 1.0)",
        "plugins/test_losses.py",
    ),
    Fault(
        "p and q swapped",
        "plugins/kdcore_losses/kullback_leibler.py",
        "return kl(log_p, log_q)",
        "return kl(log_q, log_p)",
        "plugins/test_losses.py",
    ),
    Fault(
        "skew on the other side",
        "plugins/kdcore_losses/kullback_leibler.py",
        "return kl(log_p, log_mixture(log_p, log_q, self.skew))",
        "return kl(log_p, log_mixture(log_q, log_p, self.skew))",
        "plugins/test_losses.py",
    ),
    Fault(
        "beta on the other side",
        "plugins/kdcore_losses/others.py",
        "log_m = log_mixture(log_p, log_q.detach(), self.beta)",
        "log_m = log_mixture(log_q.detach(), log_p, self.beta)",
        "plugins/test_losses.py",
    ),
    # Means
    Fault(
        "mean of each micro-batch",
        "kdcore/objective/objective.py",
        "each = [seen.of(term.label).over_count(weight, term.on, dtype) for term, weight in terms]",
        "each = [weight / seen.valid.new_tensor(max(1, len(valid))) for term, weight in terms]",
        "unit/objective/test_objective.py",
    ),
    Fault(
        "mean over what is not kept",
        "kdcore/objective/objective.py",
        "return (shares[on] * (valid / ranked.clamp(min=1))).clamp(min=1)",
        "return valid.clamp(min=1)",
        SELECTIONS,
    ),
    Fault(
        "last micro-batch dropped",
        "kdcore/training/step.py",
        "for n, reading in enumerate(readings):",
        "for n, reading in enumerate(readings[:-1] or readings):",
        "unit/objective/test_objective.py",
    ),
    Fault(
        "last chunk of tokens dropped",
        "kdcore/objective/chunked_loss.py",
        "return (slice(at, at + self.chunk) for at in range(0, len(self.positions), self.chunk))",
        "return (slice(n, n + self.chunk) for n in range(0, len(self.labels) - 1, self.chunk))",
        "unit/objective/test_chunked_loss.py unit/objective/test_objective.py",
    ),
    Fault(
        "evaluation over padding",
        "kdcore/training/evaluation.py",
        "for at in torch.split(batch.valid, size or chunk_size(batch.vocabulary, run.device)):",
        "for at in torch.split(torch.arange(len(batch.labels)), 64):",
        "unit/training/test_evaluation.py",
    ),
    # Selections
    Fault(
        "`on` ignored",
        "kdcore/objective/objective.py",
        'kept = self.keep if on == "kept" else self.keep == 0',
        "kept = self.keep",
        SELECTIONS,
    ),
    Fault(
        "`where` ignored",
        "kdcore/objective/objective.py",
        "return kept if self.where is None else kept * self.where",
        "return kept",
        "unit/objective/test_where.py",
    ),
    Fault(
        "columns of the document before",
        "kdcore/data/columns.py",
        "following = np.append(self._slots[1:], self._slots[-1:])",
        "following = self._slots",
        "unit/data/test_columns.py",
    ),
    Fault(
        "the lowest kept",
        "kdcore/objective/step_tokens.py",
        "ranking = everyone.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)",
        "ranking = everyone.nan_to_num(nan=-math.inf).argsort(stable=True)",
        "unit/objective/test_step_tokens.py",
    ),
    Fault(
        "share rounded down",
        "kdcore/objective/step_tokens.py",
        "wanted = math.ceil(value_now(share) * len(everyone) - 1e-9)",
        "wanted = math.floor(value_now(share) * len(everyone) - 1e-9)",
        "unit/objective/test_step_tokens.py",
    ),
    Fault(
        "tokens in the order of micro-batches",
        "kdcore/objective/step_tokens.py",
        "if rows == sorted(rows):",
        "if rows:",
        "unit/objective/test_step_tokens.py",
    ),
    Fault(
        "reference loss added in RHO",
        "plugins/kdcore_selections/top.py",
        "return tokens.student_nll() - tokens.nll(self.reference)",
        "return tokens.student_nll() + tokens.nll(self.reference)",
        "plugins/test_selections.py",
    ),
    # Teachers
    Fault(
        "ensemble of probabilities averages logits",
        "plugins/kdcore_ensemble.py",
        'average = _mean if self.average == "logits" else _mixture',
        "average = _mean",
        "plugins/test_ensemble.py",
    ),
    Fault(
        "ensemble's weights ignored",
        "plugins/kdcore_ensemble.py",
        "return [weight / sum(weights) for weight in weights]",
        "return [1 / len(weights) for weight in weights]",
        "plugins/test_ensemble.py",
    ),
    Fault(
        "cache off by one",
        "plugins/kdcore_cached/places.py",
        "document, offset = both[:, batch.valid + 1].cpu().numpy()",
        "document, offset = both[:, batch.valid].cpu().numpy()",
        "plugins/test_cached.py plugins/test_cached_documents.py",
    ),
    Fault(
        "top-k tail dropped",
        "plugins/kdcore_cached/buckets.py",
        "others = logs.scatter_(1, ids, -math.inf).logsumexp(-1, keepdim=True)",
        "others = torch.full_like(found[:, :1], -math.inf)",
        "plugins/test_cached_buckets.py",
    ),
    Fault(
        "the student's other ids forgotten",
        "kdcore/objective/sparse.py",
        "return shares.scatter_(1, ctx.ids, gradient[:, :-1]), None, None",
        "return torch.zeros_like(shares).scatter_(1, ctx.ids, gradient[:, :-1]), None, None",
        "unit/objective/test_sparse.py",
    ),
    # Training
    Fault(
        "weights without their schedules",
        "kdcore/api/schedule.py",
        "return self.start + (self.end - self.start) * done / self.until",
        "return self.start",
        "unit/test_optim_schedule.py",
    ),
    Fault(
        "scheduled options stay where they begin",
        "kdcore/api/schedule.py",
        "now.value = self.at(done)",
        "now.value = self.start",
        "plugins/test_scheduled_options.py",
    ),
    Fault(
        "learning rate without its schedule",
        "kdcore/optim.py",
        "return lr * share",
        "return lr",
        "unit/test_optim_schedule.py",
    ),
    Fault(
        "weight decay on norms",
        "kdcore/optim.py",
        '{"params": others, "weight_decay": 0.0},',
        '{"params": others, "weight_decay": decay},',
        "unit/test_optim.py",
    ),
    Fault(
        "gradient not clipped",
        "kdcore/training/step.py",
        "if not clip:",
        "if clip:",
        "unit/training/test_trainer.py",
    ),
    Fault(
        "each epoch in the same order",
        "kdcore/data/sampler.py",
        "order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)",
        "order = np.random.default_rng(self.seed).permutation(self.rows)",
        "unit/data/test_collate.py",
    ),
    Fault(
        "LoRA unmerged",
        "plugins/kdcore_lora.py",
        'return cast("PreTrainedModel", adapted.merge_and_unload())',
        'return cast("PreTrainedModel", adapted.unload())',
        "plugins/test_lora.py",
    ),
    # Continued runs
    Fault(
        "resumed without the position in the data",
        "kdcore/training/run_state.py",
        'self.step, self.tokens = state["step"], state["tokens"]',
        'self.tokens = state["tokens"]',
        "end_to_end/test_stages.py::test_an_interrupted_run_resumes_to_the_same_end",
    ),
    Fault(
        "resumed without the optimizer",
        "kdcore/training/checkpoints/saving.py",
        'self._load_optimizer(path, state.pop("optimizer"))',
        'state.pop("optimizer")',
        "unit/training/test_checkpoint.py",
    ),
    # Processes
    Fault(
        "every process takes all rows",
        "kdcore/data/sampler.py",
        "return range(count * process // processes, count * (process + 1) // processes)",
        "return range(count)",
        "unit/data/test_collate.py",
    ),
    Fault(
        "gradients averaged over processes",
        "kdcore/training/step.py",
        "loss = loss * self.run.processes",
        "loss = loss * 1",
        "end_to_end/test_processes.py",
    ),
    # What a run that is opened, or a stage that is handed over, is made of
    Fault(
        "a run opened with its first weights",
        "kdcore/runs/open.py",
        "load_weights(request.checkpoint, student)",
        "pass",
        "unit/runs/test_open.py",
    ),
    Fault(
        "a stage that was checked, without the folders of others",
        "kdcore/recipe/recipe.py",
        "if references and (found.needs or data):",
        "if references and data:",
        "unit/recipe/test_recipe.py",
    ),
]
