"""Loads an export with transformers and peft alone and compares its logits with those that it is given.

It is a program of its own, run by ``align.export.loads`` in a process that cannot import align:
``python -I plain.py JOB``. JOB is a folder with ``job.json`` (``folder``, ``base``: the model under an adapter or
null, ``revision``, ``reward``, ``rows``) and ``expected.safetensors``: float32 logits of row i under the name i. The
answer is JSON on standard output.
"""

import json
import sys
from pathlib import Path

sys.modules["align"] = None  # type: ignore[assignment]  # importing it fails from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

_NEW_TOKENS = 8


def main(place: Path) -> None:
    """Do the job in the folder ``place``."""
    job = json.loads((place / "job.json").read_text())
    expected = load_file(place / "expected.safetensors")
    torch.manual_seed(0)
    kind = transformers.AutoModelForSequenceClassification if job["reward"] else transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True}
    if job["reward"]:
        options["num_labels"] = 1
    if job["base"] is None:
        model = kind.from_pretrained(job["folder"], **options)
    else:
        import peft

        base = kind.from_pretrained(job["base"], revision=job["revision"], **options)
        model = peft.PeftModel.from_pretrained(base, job["folder"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=False)
    model.eval()
    largest, text = 0.0, None
    with torch.no_grad():
        for number, row in enumerate(job["rows"]):
            found = model(input_ids=torch.tensor([row])).logits.float()
            found = found[0] if found.dim() == 3 else found
            largest = max(largest, float((found - expected[str(number)]).abs().nan_to_num(nan=torch.inf).max()))
        if not job["reward"]:
            start = torch.tensor([job["rows"][0][:4]])
            settings = {"max_new_tokens": _NEW_TOKENS, "do_sample": False, "attention_mask": torch.ones_like(start)}
            written = model.generate(input_ids=start, **settings)[0, start.shape[1] :]
            text = tokenizer.decode(written, skip_special_tokens=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"largest": largest, "text": text, "versions": versions}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
