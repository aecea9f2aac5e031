"""The benchmark for GPUs, rehearsed on the CPU: its counts by hand, a way from end to end, and what its table says."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

FOLDER = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)  # the scripts look for each other beside themselves
try:
    gpu, gpu_grid, gpu_report, gpu_step, profile_table, rows, shapes = map(
        importlib.import_module,
        ("gpu", "gpu_grid", "gpu_report", "gpu_step", "profile_table", "rows", "shapes"),
    )
finally:
    sys.path.remove(FOLDER)

TINY = shapes.SHAPES["tiny"]
PAIR = {"prompt_ids": [2, 3, 4], "chosen_ids": [5, 6, 1], "rejected_ids": [7, 1]}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_backbone_has_the_weights_of_its_linear_layers() -> None:
    model = TINY.model(torch.device("cpu"))
    linear = [m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    assert TINY.backbone() == sum(linear) == 61_440
    assert shapes.SHAPES["1b"].backbone() == 973_078_528  # Llama 3.2 1B without embeddings and norms
    assert shapes.SHAPES["7b-lora"].backbone() == 6_476_005_376


def test_operations_of_a_step_count_prompts_once_and_the_head_by_answer_token() -> None:
    # fed: three prompt tokens, two of the chosen answer, one of the rejected; five answer tokens are scored
    full, lora = TINY, shapes.SHAPES["7b-lora"]
    assert full.step_operations([PAIR]) == 2 * 61_440 * 6 * (3 + 1) + 2 * 64 * 512 * 5 * (3 + 1)
    assert lora.step_operations([PAIR]) == 2 * lora.backbone() * 6 * (2 + 1 + 1) + 2 * 4096 * 32000 * 5 * (2 + 1)


def test_the_ideal_ratio_is_that_of_the_positions_where_attention_is_small_and_grows_with_the_prompt() -> None:
    shape = shapes.SHAPES["7b-lora"]
    linear, attention, head = 2 * shape.backbone() * 3, 4 * 4096 * 32 * 4, 2 * 4096 * 32000 * 2 * 2 * 256
    once = linear * 1536 + attention * (1024**2 / 2 + 2 * (256 * 1024 + 256**2 / 2)) + head
    twice = linear * 2560 + attention * 1280**2 + head
    assert shape.ideal_ratio(1024, 256) == pytest.approx(twice / once)
    ratios = [shape.ideal_ratio(*lengths) for lengths in shapes.GRID]
    assert [round(ratio, 2) for ratio in ratios] == [1.66, 1.65, 1.78, 1.99]


def test_kernels_are_told_apart_by_their_names() -> None:
    names = {
        "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT": "matrix products",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "matrix products",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>": "attention",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>": "copies and casts",
        "Memcpy HtoD (Pinned -> Device)": "copies and casts",
        "void at::native::vectorized_elementwise_kernel<4, BinaryFunctor<float, MulFunctor<float>>>": (
            "elementwise and sums"
        ),
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>": "optimizer",
        "void at::native::indexing_backward_kernel<float, 4>": "other",
    }
    assert {name: profile_table.kind_of(name) for name in names} == names


def event(key: str, device: Any, microseconds: float, *, mark: bool = False) -> SimpleNamespace:
    """A line of a profile as a GPU would leave it."""
    return SimpleNamespace(
        key=key, device_type=device, count=1, is_user_annotation=mark,
        self_device_time_total=microseconds, self_cpu_time_total=1.0,
    )  # fmt: skip


def test_each_kernel_is_counted_once() -> None:
    events = [
        event("gemm", DeviceType.CUDA, 2000.0),
        event("aten::mm", DeviceType.CPU, 2000.0),  # the same time, under the operator that started the kernel
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 9000.0, mark=True),
    ]
    found = profile_table.by_kind(events)
    assert found["of"] == "kernels of the device"
    assert {kind: time for kind, time in found["milliseconds"].items() if time} == {"matrix products": 2.0}
    assert [entry["name"] for entry in found["longest"]] == ["gemm"]


def batches(kind: str) -> list[list[dict[str, list[int]]]]:
    made = rows.made_rows(kind, 8, TINY.vocabulary, 0)
    return [made[i : i + 2] for i in range(0, 8, 2)]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Three ways on short rows, a profile of ours, and a point of the grid."""
    found = {way: gpu_step.attempt(TINY, way, "tldr", batches("tldr"), 1e10) for way in ("ours", "padded", "trl")}
    found["trl_liger"] = {"out_of_memory": "CUDA out of memory"}
    return found


def test_ways_take_the_same_steps_and_say_what_they_took(measured: dict[str, Any]) -> None:
    fed = [rows.trie_nodes(batch) for batch in batches("tldr")]
    for way in ("ours", "padded", "trl"):
        found = measured[way]
        assert found["loss"] == pytest.approx(0.6931, abs=2e-3)  # the rate is 0, so that every step starts anew
        assert found["unique_tokens"] == sum(fed) / 4
        assert 0 < found["seconds"]["min"] <= found["seconds"]["median"] <= found["seconds"]["max"]
        assert 0 < found["mfu"] < 100
    assert [measured[way]["mode"] for way in ("ours", "padded", "trl")] == ["tree", "padded", None]


def test_a_way_without_memory_is_a_row_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr(gpu_step, "measure", full)
    assert gpu_step.attempt(TINY, "ours", "uf", [], 1.0) == {"out_of_memory": "CUDA out of memory"}
    assert gpu_step.attempt(TINY, "trl_liger", "uf", [], 1.0) == (
        {"out_of_memory": "CUDA out of memory"} if gpu_step.without("trl_liger") is None
        else {"skipped": gpu_step.without("trl_liger")}
    )  # fmt: skip


def test_the_grid_gives_both_times_and_their_share_of_the_ideal_ratio() -> None:
    grid = gpu_grid.Grid(TINY)
    point = grid.point(40, 8, 2)
    assert grid.chosen.mode == "tree"
    assert point["ratio"] == point["padded"] / point["tree"]
    assert point["share_of_ideal"] == point["ratio"] / TINY.ideal_ratio(40, 8)


def test_the_table_names_ratios_and_what_could_not_be_measured(measured: dict[str, Any], tmp_path: Path) -> None:
    kinds = {"of": "kernels of the device", "milliseconds": dict.fromkeys((*profile_table.KINDS, "other"), 2.5)}
    memory = {"held_gib": 18.0, "peak_gib": 28.0, "above_gib": 10.0}
    ours = {**measured["ours"], **memory, "kinds": kinds}
    trl = {**measured["trl"], **memory, "above_gib": 20.0, "seconds": {"median": 2.0, "min": 1.0, "max": 3.0}}
    ours["seconds"] = {"median": 0.5, "min": 0.25, "max": 0.75}
    ways = {**measured, "ours": ours, "trl": trl}
    points = [
        {"prompt": 1024, "answer": 256, "pairs": 1, "tree": 2.0, "padded": 3.0, "ratio": 1.5, "ideal": 1.6,
         "share_of_ideal": 0.9375},
        {"prompt": 16384, "answer": 64, "pairs": 4, "out_of_memory": "padded: CUDA out of memory"},
    ]  # fmt: skip
    shape = {"ways": {way: {"tldr": found} for way, found in ways.items()}, "grid": {"mode": "tree", "points": points}}
    report = {"about": gpu.about(790e12), "shapes": {"tiny": shape}, "seconds": 12.0}
    text = gpu_report.table(report)
    (line,) = [line for line in text.splitlines() if line.startswith("tldr, ours")]
    assert line.split()[2:6] == ["0.500", "(0.250", "to", "0.750)"]
    assert line.split()[8:] == ["28.0", "(18.0)", "10.0", "4.00", "0.50"]
    assert "tldr, TRL, Liger layers       out of memory: CUDA out of memory" in text
    assert "over 790 TFLOP/s" in text
    assert text.count("2.5\n") == 6
    assert "  1024 + 256   1 pairs" in text
    assert text.splitlines()[-4].split() == ["1024", "+", "256", "1", "pairs", "2.000", "3.000", "1.50", "1.60", "94%"]
    assert text.splitlines()[-3].endswith("out of memory: padded: CUDA out of memory")
    gpu_report.draw(report, tmp_path / "results.png")
    assert (tmp_path / "results.png").read_bytes()[:4] == b"\x89PNG"


def test_a_process_that_fails_leaves_its_last_words_and_what_it_had_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, out = tmp_path / "dies.py", tmp_path / "out.json"
    script.write_text("import sys\nopen(sys.argv[-1], 'w').write('{\"uf\": 1}')\nprint('x')\nsys.exit('no luck')\n")
    assert gpu.started(str(script), [], out, time.monotonic() + 60) == {"uf": 1, "failed": "no luck"}
    script.write_text("import time\ntime.sleep(60)\n")
    late = {"failed": "not started, since the time was over (--seconds)"}
    assert gpu.started(str(script), [], tmp_path / "late.json", time.monotonic() + 29) == late
    monkeypatch.setattr(gpu, "LEAST", 0.0)
    cut = gpu.started(str(script), [], tmp_path / "cut.json", time.monotonic() + 0.4)
    assert cut == {"failed": "not finished after 0 s"}


def test_on_a_cpu_only_the_rehearsal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names, sentence in (("huge", "no shape is called huge; there are 1b, 7b-lora, tiny"), ("1b", "no GPU here")):
        if names == "huge" or not torch.cuda.is_available():
            with pytest.raises(SystemExit):
                gpu.main(["--out", str(tmp_path), "--shapes", names])
            assert sentence in capsys.readouterr().err
