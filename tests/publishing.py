"""What tests of publishing share: a token, a picture, a push, and a download that talks."""

from pathlib import Path
from typing import Any

from hub import Hub, Repository

from results.publish.push import Access, PushResult, selected
from results.publish.push import push as publish
from results.publish.target import Target
from results.run.run import Run

TOKEN = "hf_only_for_this_test"
PICTURE = b"\x89PNG\r\n\x1a\n as if drawn"
PUBLISHED = [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "dpo.yaml",
    "front.png",
    "generation_config.json",
    "model.safetensors",
    "spec.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
]
ASKED = [{"role": "user", "content": "Hello! What is the capital of France? Thanks!"}]
READ = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

where, asked = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(where)
model = AutoModelForCausalLM.from_pretrained(where)
inputs = tokenizer.apply_chat_template(
    asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
tokens = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0].tolist()
chat = pipeline("text-generation", model=where, device="cpu")
said = chat(asked, do_sample=False, max_new_tokens=24)[0]["generated_text"][-1]
print(json.dumps([tokens, said]))
"""


def draw(folder: Path) -> None:
    """Put a figure there, so that no browser has to be started for one."""
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "front.png").write_bytes(PICTURE)


def published(repository: Repository, revision: str = "main") -> list[str]:
    return [name for name in repository.files(revision) if name != ".gitattributes"]


def push(run: Run, name: str, **options: Any) -> PushResult:
    """Push with the options of the command, and a Hub's token and endpoint."""
    models = {"trial": None, "full": False, "adapter": False}
    model = {key: options.pop(key, default) for key, default in models.items()}
    target = Target(name, options.pop("private", False), options.pop("revision", None))
    access = Access(options.pop("token", None), options.pop("endpoint", None))
    return publish(run, target, selected(run, **model), access=access, **options)


def pushed(hub: Hub, run: Run, repo: str = "me/winner", **options: Any) -> str:
    """Push, and return the commit that the branch is at."""
    done = push(run, repo, token=TOKEN, endpoint=hub.endpoint, **options)
    assert done.uploaded is not None
    return done.uploaded.commit
