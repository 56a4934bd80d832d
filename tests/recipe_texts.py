"""Recipe texts that tests of the recipe language start from."""

SIMPLE = """\
[student]
model = "m"

[data]
use = "text"
path = "p"

[[loss]]
use = "ce"

[train]
lr = 1e-4
epochs = 1
"""

TAUGHT = """\
seed = 7
[student]
model = "m"
[data]
use = "text"
path = "p"
[teacher]
use = "hf"
model = "t"
[[loss]]
use = "ce"
weight = 0.5
[[loss]]
use = "kl"
temperature = 2.0
[train]
lr = 1e-4
epochs = 3
"""

STAGED = """\
[tokenizer]
use = "bpe"

[data]
use = "text"
path = "p"

[train]
epochs = 4
batch = 16

[stage.student.student.config]
model_type = "llama"
hidden_size = 64

[stage.student.teacher]
use = "ensemble"
members = [
    {use = "hf", model = "@one"},
    {use = "hf", model = "@two"},
]

[[stage.student.loss]]
use = "ce"

[[stage.student.loss]]
use = "kl"
temperature = 2.0

[stage.student.train]
lr = 1e-3
steps = 10

[stage.one.student.config]
model_type = "gpt2"
[[stage.one.loss]]
use = "ce"
[stage.one.train]
lr = 1e-4

[stage.two.student]
model = "@one"
[[stage.two.loss]]
use = "ce"
[stage.two.train]
lr = 2e-4
"""
