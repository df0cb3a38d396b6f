"""Train two tasks with two methods together on one base. Usage: 2_train.py [BASE]"""

import json
import sys
import tempfile
from pathlib import Path

import onebase

SUPPORT = [
    {"question": f"Where is order {n}?", "answer": f"Happy to help! Order {n} arrives on Monday."}
    for n in range(101, 109)
]
MOOD = [
    {"text": f"The {thing} is {word}.", "label": label}
    for thing in ("lamp", "chair", "mug", "scarf")
    for word, label in (("lovely", "good"), ("broken", "bad"))
]
base = onebase.Base.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for name, rows in (("support", SUPPORT), ("mood", MOOD)):
        text = "\n".join(json.dumps(row) for row in rows)
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    jobs = [
        onebase.Job(task="support", data=root / "support.jsonl", method="lora", set={"epochs": 1}),
        onebase.Job(task="mood", data=root / "mood.jsonl", method="p-tuning", set={"epochs": 1}),
    ]
    stored = onebase.train(jobs, base=base, workspace=onebase.Workspace(root / "workspace"))
    for adapter in stored:
        before, after = adapter.metrics["base_eval_loss"], adapter.metrics["eval_loss"]
        print(f"{adapter.name} ({adapter.method}): held-out loss {before:.3f} -> {after:.3f}")
        print("  files:", ", ".join(sorted(file.name for file in adapter.path.iterdir())))
