"""What the recipes of the founding systems ask the hub for, under the same ids, only small.

Names, columns, splits, widths of heads and numbers of ids are the real ones. The texts are drawn
from a few words; the models have one layer.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from standin_hub import serving

SPECIAL = [f"<|special-{n}|>" for n in range(20)]
CHAT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "the old mill stands by a slow river and turns when rain has come down from far hills"


def qwen_tokenizer(*, chat=False):
    """The real one where KDCORE_REAL_MODELS names a folder that has it, else as many ids."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    real = Path(os.environ.get("KDCORE_REAL_MODELS", "-")) / "qwen2.5-tokenizer"
    if real.is_dir():
        return AutoTokenizer.from_pretrained(real)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [f"filler-{n}" for n in range(151_643 - len(letters))]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    turns = ["<|im_start|>", "<|im_end|>"] if chat else []
    backend.add_special_tokens(["<|endoftext|>", *turns, *SPECIAL[len(turns) :], "<|im_last|>"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT if chat else None,
    )
    assert len(made) == 151_665
    return made


def llama2_tokenizer():
    """32,000 ids, `<s>` before a text unless asked not to, no padding."""
    import tiny
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tiny.llama_tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"filler-{n}": n for n in range(len(vocabulary), 32_000)}
    backend = Tokenizer.from_str(json.dumps(state))
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    assert len(made) == 32_000 and made.pad_token is None
    return made


def lay_llama2_tokenizer(root, name="NousResearch/Llama-2-7b-hf"):
    """As the hub's folder says it: Llama's own class, its settings beside it."""
    folder = root / "models" / name
    llama2_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    said |= {"add_bos_token": True, "add_eos_token": False, "legacy": False}
    said.pop("backend", None)
    path.write_text(json.dumps(said))
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 32000}')


def lay_llama3(root, name="meta-llama/Meta-Llama-3-8B"):
    """A Llama 3 with as many ids, of which the last 256 are special."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [f"filler-{n}" for n in range(128_000 - len(letters))]
    backend = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    backend.add_special_tokens([begin, end, *(f"<|reserved_{n}|>" for n in range(254))])
    backend.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 128_000)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin, eos_token=end)
    assert len(made) == 128_256
    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=128_256, num_hidden_layers=1, num_key_value_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(root / "models" / name)
    made.save_pretrained(root / "models" / name)


def lay_qwen(root, name, rows, tokenizer):
    """A Qwen2.5 with so many rows in its head, tied as the small ones are."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(rows + len(name))
    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    folder = root / "models" / "Qwen" / name
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lay_data(root, name, splits, *, config="data"):
    """A data set of parquet files: `splits` are the columns of each."""
    from datasets import Dataset

    folder = root / "datasets" / name
    (folder / config).mkdir(parents=True)
    said = [f"  - split: {split}\n    path: {config}/{split}-*" for split in splits]
    called = "default" if config == "data" else config
    lines = ["---", "configs:", f"- config_name: {called}", "  data_files:", *said, "---", ""]
    (folder / "README.md").write_text("\n".join(lines))
    for split, columns in splits.items():
        table = Dataset.from_dict(columns)
        table.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")


def sentences(count, seed, *, longest=60):
    """Texts of known words, the same for a seed."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS.split(), draw.integers(2, longest))) for _ in range(count)]


# One process for all commands of a test file: most of a small run is importing.
WORKER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
import logging
from kdcore.cli import main as cli
answers = sys.stdout
for line in sys.stdin:
    sys.argv = ["kdcore", *json.loads(line)]
    logging.getLogger("kdcore").handlers.clear()
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = cli._exit_code()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Hub:
    """`kdcore` in a process of its own that asks a stand-in for the hub."""

    def __init__(self, url, home, asked):
        self.home, self.asked, self.said = home, asked, ""
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_CACHE": str(home / "datasets"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kdcore(self, *arguments):
        """The exit code. What it said on stderr is in `said`."""
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        code, _, self.said = json.loads(self.process.stdout.readline())
        return code

    def run(self, recipe, *sets, each=()):
        """The folders of the runs that this made, by stage; of several, one."""
        before = {*self.home.glob("runs/*-*")}
        words = [word for one in sets for word in ("--set", one)]
        words += [word for one in each for word in ("--each", one)]
        assert self.kdcore("run", recipe, *words) == 0, self.said
        made = {*self.home.glob("runs/*-*")} - before
        return {each.name.rpartition("-")[0].partition(".")[2]: each for each in made}


@contextmanager
def hub_of(root, home):
    """A hub that has what lies in `root`."""
    with serving(root) as (url, asked):
        hub = Hub(url, home, asked)
        try:
            yield hub
        finally:
            hub.process.stdin.close()
            hub.process.wait()


def metrics(folder):
    """The lines of a run's metrics: of training, and of evaluations."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "loss" in line], [line for line in read if "eval/nll" in line]
