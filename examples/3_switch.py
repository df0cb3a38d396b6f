"""Answer for two tasks, an older version and the bare base in one batch. Usage: 3_switch.py [BASE]"""

import json
import sys
import tempfile
from pathlib import Path

import onebase

ROWS = [
    {"input": f"Where is order {n}?", "output": f"Happy to help! Order {n} arrives on Monday."}
    for n in range(101, 109)
]
base = onebase.Base.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    workspace = onebase.Workspace(Path(folder) / "workspace")

    def train(task: str, method: str) -> onebase.StoredAdapter:
        job = onebase.Job(
            task=task, data=file, method=method, set={"epochs": 1, "batch_size": 1, "warmup": 0}
        )
        return onebase.train([job], base=base, workspace=workspace)[0]

    first, second, polite = (
        train("support", "lora"),
        train("support", "prompt-tuning"),
        train("polite", "p-tuning-v2"),
    )
    engine = onebase.Engine(base, adapters=[second, polite])
    engine.load(first, name="support@1")
    tasks = ["support", "support@1", "polite", "base"]
    question = "Where is order 117?"
    for answer in engine.generate([(t, question) for t in tasks], onebase.Sampling(max_tokens=16)):
        print(f"[{answer.task}, version {answer.version}] {answer.text}")
    print("rolled back to", onebase.AdapterStore(workspace).rollback("support").name)
