"""A recipe with stages that is swept, and an executor that trains nothing."""

from pathlib import Path

from whole_runs import RECIPE

from kdcore.api.jobs import JobState
from kdcore.recipe.recipe import read_recipe
from kdcore.sweeps.points import SweepRequest, read_points

STAGES = (
    RECIPE
    + """
[stage.big]
[stage.small.teacher]
use = "hf"
model = "@big"
[[stage.small.loss]]
use = "ce"
weight = 0.5
[[stage.small.loss]]
use = "kl"
weight = 0.5
[[stage.small.eval]]
use = "agreement"
"""
)
SELECTION = """
[stage.small.selection]
use = "hardest"
keep = 0.5
"""
SWEEP = '\n[sweep]\n"stage.small.seed" = [0, 1]\n'


def points(host, text, *, name="r.toml", **asked):
    """The points of a recipe of this text."""
    Path(name).write_text(text)
    return read_points(SweepRequest(name, **asked), host).all


class Pretended:
    """An executor whose jobs end as `ends` says, one after another; 0 makes the final folder."""

    name, component_kind, seconds = "pretended", "executor", 0.0

    def __init__(self, host, ends=(), *, room=2, outlives=False, chains=False):
        self.host, self.ends, self.room = host, list(ends), room
        self.outlives, self.chains = outlives, chains
        self.jobs, self.open, self.cancelled = [], {}, []

    def start(self, job):
        if len(self.open) >= self.room:
            return None
        self.jobs.append(job)
        self.open[str(len(self.jobs))] = job
        return str(len(self.jobs))

    def states(self, handles):
        found = {}
        for handle in handles:
            if handle in self.open:
                found[handle] = self.end(self.open.pop(handle))
        return found

    def end(self, job):
        code = self.ends.pop(0) if self.ends else 0
        if code == 0:
            self.folder_of(job).joinpath("final").mkdir(parents=True)
        return JobState("ended", code)

    def folder_of(self, job):
        recipe = job.command[job.command.index("run") + 1]
        out = Path(job.command[job.command.index("--out") + 1])
        stage = job.command[job.command.index("--stage") + 1] if "--stage" in job.command else ""
        found = read_recipe(recipe, self.host)
        return out / f"{found.run_name(stage)}-{found.identity(stage)}"

    def cancel(self, handles):
        self.cancelled += handles
