import pytest
import tiny
import tomli_w
import typer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from kdcore import RunError, UsageError
from kdcore.commands.generate import generate

app = typer.Typer()
app.command()(generate)


def typed(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def runs(tmp_path):
    """Two finished runs and one that is not."""
    for name, seed in (("fox-1111", 0), ("owl-2222", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text("")
        tiny.save(tmp_path / name / "final", seed=seed)
    (tmp_path / "unfinished-3333").mkdir()
    (tmp_path / "unfinished-3333" / "recipe.toml").write_text("")
    return tmp_path


SHORT = ("--max-new-tokens", 6)


def test_a_run(runs):
    said = typed("fox", "--prompt", "Once upon", "--out", runs, *SHORT)
    assert said.exit_code == 0
    assert said.stdout.startswith("Once upon") and len(said.stdout) > len("Once upon\n")
    assert typed("fox", "--prompt", "Once upon", "--out", runs, *SHORT).stdout == said.stdout
    assert (
        typed("fox", "--prompt", "Once upon", "--out", runs, "--seed", 1, *SHORT).stdout
        != said.stdout
    )


@pytest.mark.parametrize(
    "small, environment, threads",
    [(200_000_000, {}, 1), (0, {}, 3), (200_000_000, {"OMP_NUM_THREADS": "3"}, 3)],
)
def test_one_thread_generates_with_a_small_model(runs, monkeypatch, small, environment, threads):
    used = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("kdcore.commands.generate._SMALL", small)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("torch.set_num_threads", used.append)
    assert typed("fox", "--prompt", "x", "--out", runs, *SHORT).exit_code == 0
    assert used == ([1, 3] if threads == 1 else [3])


@pytest.mark.parametrize("own, begins", [("auto", True), (False, False), (None, False)])
def test_a_runs_prompts_begin_as_its_documents(runs, monkeypatch, own, begins):
    """A run that says nothing of it is older, and its documents began with nothing."""
    final, asked = runs / "fox-1111" / "final", []
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.save_pretrained(final)
    data = {} if own is None else {"bos": own}
    (runs / "fox-1111" / "resolved.toml").write_text(tomli_w.dumps({"name": "fox", "data": data}))

    def write(model, tokenizer, prompts, *, bos, **options):
        asked.append(bos)
        return [""] * len(prompts)

    monkeypatch.setattr("kdcore.models.generation.generate", write)
    typed("fox", "--prompt", "Once", "--out", runs)
    typed(final, "--prompt", "Once")
    assert asked == [[0] if begins else [], [0]]


def test_several_models_and_prompts(runs):
    folder = runs / "owl-2222" / "final"
    prompts = ("--prompt", "Once", "--prompt", "She had")
    said = typed("fox", folder, *prompts, "--out", runs, "--temperature", 0, *SHORT).stdout
    first, second = said.split("--- ")[1:]
    assert first.startswith("fox\nOnce") and "\n\nShe had" in first
    assert second.startswith(f"{folder}\nOnce")
    assert first.split("\n", 1)[1] != second.split("\n", 1)[1]


def test_an_unfinished_run(runs):
    with pytest.raises(UsageError, match="unfinished-3333 is not finished and has no final model"):
        typed("unfinished", "--prompt", "a", "--out", runs)


def test_nothing_of_that_name(runs):
    with pytest.raises(UsageError, match="there is no run 'foy'"):
        typed("foy", "--prompt", "a", "--out", runs)


def test_all_models_are_looked_for_before_one_is_loaded(runs):
    with pytest.raises(UsageError):
        typed("fox", "gone", "--prompt", "a", "--out", runs)


def test_the_hub(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "kdcore.commands.generate._written", lambda place, *_: asked.append(place) or []
    )
    typed("Qwen/Qwen2.5-0.5B", "--prompt", "a", "--out", runs)
    assert asked == ["Qwen/Qwen2.5-0.5B"]


def test_chat(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tiny.save(tmp_path, tokenizer=tokenizer)
    greedy = ("--temperature", 0, *SHORT)
    answer = typed(tmp_path, "--prompt", "Hello", "--chat", *greedy).stdout
    whole = typed(tmp_path, "--prompt", "user: Hello\nassistant:", *greedy).stdout
    assert "user: Hello\nassistant:" + answer == whole


@pytest.mark.parametrize("own", ["{{ 'other' }}", None])
def test_a_run_is_asked_in_the_template_that_it_trained_with(runs, monkeypatch, own):
    asked = []

    def write(model, tokenizer, prompts, *, bos, **_):
        asked.append((*prompts, bos))
        return ["yes"]

    monkeypatch.setattr("kdcore.models.generation.generate", write)
    run = runs / "fox-1111"
    (run / "resolved.toml").write_text('[data]\nuse = "sft"\ntemplate = "plain"\nbos = "auto"\n')
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = own
    tokenizer.save_pretrained(run / "final")
    assert typed("fox", "--prompt", "Hi", "--chat", "--out", runs).stdout == "yes\n"
    assert asked == [("User:\nHi\n\nAssistant:\n", [])]


def test_a_template_that_does_not_end_is_refused(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content * 2000000000 }}"
    tiny.save(tmp_path, tokenizer=tokenizer)
    with pytest.raises(RunError, match="chat template"):
        typed(tmp_path, "--prompt", "Hello", "--chat", *SHORT)


def test_chat_without_a_template(runs):
    with pytest.raises(UsageError, match="has no chat template; leave out --chat"):
        typed("fox", "--prompt", "a", "--chat", "--out", runs)
