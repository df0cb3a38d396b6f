"""Teach a support desk's tone with pairs of answers (DPO). Usage: 4_preferences.py [BASE]"""

import sys
import tempfile
from pathlib import Path

import onebase
import onebase.demo

DATA = Path(onebase.demo.__file__).parent / "en"
QUESTIONS = ["My lamp arrived broken.", "Do you ship to Italy?", "Can I pay in cash?"]
base = onebase.Base.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")

with tempfile.TemporaryDirectory() as folder:
    workspace = onebase.Workspace(Path(folder))
    job = onebase.Job("support", DATA / "support.jsonl", "lora", "Answer as the support desk.")
    (trained,) = onebase.train([job], base=base, workspace=workspace)
    # DPO starts from the task's adapter, which is also the reference, and stores the next version.
    tone = onebase.AlignJob("support", DATA / "tone.jsonl", set={"epochs": 8})
    aligned = onebase.train_dpo(tone, base=base, workspace=workspace)

    engine = onebase.Engine(base)
    engine.load(trained, name="before")
    engine.load(aligned, name="after")
    requests = [(name, question) for name in ("before", "after") for question in QUESTIONS]
    answers = [answer.text for answer in engine.generate(requests, onebase.Sampling(max_tokens=48))]
    count = len(QUESTIONS)
    for question, before, after in zip(QUESTIONS, answers[:count], answers[count:], strict=True):
        print(f"{question}\n  before: {before}\n  after:  {after}")
    accuracy = aligned.metrics["pair_accuracy"]
    print(f"Held-out pairs whose chosen answer became more likely: {accuracy:.0%}")
