import pytest

J = "{task: a, data: support.jsonl%s}"
P = [
    ("tasks " + y, ("train", "-c", "p.yaml", "--base", "{base}"), y)
    for y in [
        "jobs: [%s]" % (J % e)
        for e in (
            ", set: 3",
            ", method: [1]",
            ", columns: 3",
            ", seed: x",
            ", instruction: 3",
            ", template: 3",
            ", set: {rank: x}",
            ", set: {1: 2}",
            ", held_out: 3",
            ", skip_bad: x",
        )
    ]
    + [
        "jobs: [{task: 5, data: support.jsonl}]",
        "jobs: [{task: a, data: [1]}]",
        "base: 5\njobs: [{task: a, data: support.jsonl}]",
        "1: 2\njobs: [{task: a, data: support.jsonl}]",
        "jobs: [{1: 2}]",
    ]
]
T = ("train", "--task", "t", "--data", "support.jsonl", "--base", "{base}")
G = ("generate", "--base", "{base}", "--prompt", "Hi", "--max-tokens", "2")
P += [
    (" ".join(x), x, None)
    for x in [
        T + ("--set", "learning_rate=nan"),
        T + ("--set", "learning_rate=.inf"),
        T + ("--set", "learning_rate=1e30"),
        T + ("--set", "alpha=.inf"),
        T + ("--set", "rank=true"),
        T + ("--set", "rank=8.5"),
        T + ("--set", "rank=2023-01-01"),
        T + ("--seed", str(2**70)),
        T + ("--seed", "-1"),
        T + ("--set", "max_tokens=8"),
        T + ("--set", "held_out=0.99"),
        T + ("--set", "held_out=0"),
        T + ("--set", "target=q_proj,"),
        T + ("--method", "p-tuning-v2", "--set", "virtual_tokens=0"),
        T + ("--method", "prompt-tuning", "--set", "init=x"),
        G + ("--temperature", "nan"),
        G + ("--temperature", "inf"),
        G + ("--temperature", "1", "--seed", str(2**70)),
        G + ("--temperature", "1", "--seed", "-1"),
        G + ("--stop", ""),
        G + ("--temperature", "1e-40"),
        ("generate", "--base", "{base}", "--prompt", "word " * 3000, "--max-tokens", "2"),
        ("generate", "--task", "", "--prompt", "a"),
        ("generate", "--base", "{base}", "--task", "base@1", "--prompt", "a"),
        ("generate", "--base", "", "--prompt", "a"),
        ("train", "-c", "tasks.yaml", "--set", "rank=4"),
        ("data", "check", "support.jsonl", "--base", "{base}", "--max-tokens", "0"),
        ("data", "check", "support.jsonl", "--base", "{base}", "--max-tokens", "-5"),
        ("data", "check", "support.jsonl", "--base", "{base}", "--template", "x"),
        ("data", "check", "support.jsonl", "--base", "{base}", "--template", "{input}{bad}"),
        ("data", "check", "support.jsonl", "--base", "empty"),
        ("doctor", "--workspace", "support.jsonl"),
        ("adapters", "list", "--workspace", "support.jsonl"),
        T + ("--workspace", "support.jsonl"),
        ("adapters", "import", "imp", "--task", "t", "--base", "{base}"),
        ("adapters", "import", "imp2", "--task", "t", "--base", "{base}"),
        ("model", "path", ""),
        ("--foo",),
        ("--lang", "zh"),
        ("--json",),
        ("train", "--json"),
        ("runs", "show", "x"),
        ("classify", "--task", "base", "--text", "a", "--labels", ",", "--base", "{base}"),
        T + ("--columns", "a=b=c"),
        T + ("--columns", ""),
        T + ("--instruction", ""),
        T + ("--held-out", "support.jsonl"),
        T + ("--template", ""),
    ]
]


@pytest.mark.parametrize("p", P, ids=[p[0][:80] for p in P])
def test_p(p, onebase, base, desk):
    (desk / "empty").mkdir()
    (desk / "empty/config.json").write_text("{}")
    (desk / "imp").mkdir()
    (desk / "imp/adapter_config.json").write_text('{"peft_type":"LORA"}')
    (desk / "imp2").mkdir()
    (desk / "imp2/adapter_config.json").write_text(
        '{"peft_type":"PREFIX_TUNING","num_virtual_tokens":"x"}'
    )
    import torch
    from safetensors.torch import save_file

    for n in ("imp", "imp2"):
        save_file({"prompt_embeddings": torch.zeros(2, 2)}, desk / n / "adapter_model.safetensors")
    (desk / "tasks.yaml").write_text("jobs: [{task: a, data: support.jsonl}]")
    if p[2]:
        (desk / "p.yaml").write_text(p[2])
    try:
        r = onebase(*[base if a == "{base}" else a for a in p[1]])
    except BaseException as e:
        open("/tmp/probe.out", "a").write(
            f"!! {p[0][:160]}\n     CRASH {type(e).__name__} {str(e)[:300]}\n"
        )
        return
    open("/tmp/probe.out", "a").write(
        f"{r.code} {p[0][:160]}\n     {r.out[:200]!r} {r.err[-300:]!r}  {sorted(x.name for x in (desk / 'ws').glob('*'))}\n"
    )
