"""docs/troubleshooting.md: each message there is provoked, each case here has its section, and what is quoted fits.

A heading between backticks is a message; `…` stands for any text. A section whose message no CPU can bring about says
so (`not provoked`), and its message stands in the sources.
"""

import importlib
import importlib.machinery
import io
import logging
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import setuptools
import torch
from provoke import ROOT, Provoke
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import cpp_extension

import cosegflow
from cosegflow import _library, info
from cosegflow.ops import _transforms, _trust

PAGE = ROOT / "docs" / "troubleshooting.md"
FA, FB, FLOW = torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5), torch.zeros(2, 2, 4, 5)

# --------------------------------------------------------------------------------------------------------------------
# The page


@dataclass(frozen=True)
class Section:
    """One message of the page: what is quoted below its heading, and why it is not provoked, if it is not."""

    quotes: list[str]
    why_not: str | None


def read_page() -> dict[str, Section]:
    """The sections by heading, without its backticks."""
    found = {}
    for part in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading, _, body = re.split(r"^## ", part, maxsplit=1, flags=re.M)[0].partition("\n")
        assert re.fullmatch("`[^`]+`", heading), f"a heading is a message between backticks: {heading}"
        assert heading.strip("`") not in found, f"twice: {heading}"
        why = re.search(r"<!-- not provoked: (.+) -->", body)
        quotes = re.findall(r"^```text\n(.*?)\n```$", body, flags=re.M | re.S)
        found[heading.strip("`")] = Section(quotes, why and why[1])
    return found


def fits(quoted: str, message: str) -> bool:
    """Whether a message has what is quoted, `…` being any text."""
    return re.search(re.escape(quoted).replace("…", ".*"), message, flags=re.S) is not None


SECTIONS = read_page()
Case = Callable[[Provoke], "str | list[str]"]
CASES: dict[str, Case] = {}


def case(heading: str) -> Callable[[Case], Case]:
    """Registers what brings the message of a section about."""

    def register(function: Case) -> Case:
        assert heading not in CASES
        CASES[heading] = function
        return function

    return register


# --------------------------------------------------------------------------------------------------------------------
# Building


@case("cosegflow needs PyTorch to build, and importing it failed")
def _(p: Provoke) -> str:
    p.patch.setitem(sys.modules, "torch", None)
    return p.error(p.setup)


@case("cosegflow needs torch >= 2.10 to build, got …")
def _(p: Provoke) -> str:
    p.patch.setattr(torch, "__version__", "2.9.1+cu128")
    return p.error(p.setup)


@case("cosegflow needs a C++17 compiler to build, and there is no …")
def _(p: Provoke) -> list[str]:
    p.patch.setenv("COSEGFLOW_CPU_ONLY", "1")
    p.patch.delenv("COSEGFLOW_FORCE_CUDA", raising=False)
    texts = []
    for name in ("no-such-compiler -O1", ""):
        p.patch.setenv("CXX", name)
        texts.append(p.error(p.build))
    assert "no no-such-compiler: install one" in texts[0] and "no '': install one" in texts[1]
    return texts


@case("Python.h: No such file or directory")
def _(p: Provoke) -> str:
    assert "#include <Python.h>" in (ROOT / "csrc/torch/module.cpp").read_text()
    command = ["g++", "-fsyntax-only", "-nostdinc", "-I", str(p.tmp), "-x", "c++", "-"]
    return subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True).stderr


@case("Attempted to use ninja as the BuildExtension backend but we could not find ninja")
def _(p: Provoke) -> str:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger(cpp_extension.__name__)
    p.patch.setenv("PATH", str(p.tmp))
    logger.addHandler(handler)
    try:
        cpp_extension.BuildExtension(setuptools.Distribution())
    finally:
        logger.removeHandler(handler)
    return said.getvalue()


@case("cosegflow is being built WITHOUT CUDA kernels: …")
def _(p: Provoke) -> str:
    p.patch.setenv("COSEGFLOW_CPU_ONLY", "1")
    p.patch.delenv("COSEGFLOW_FORCE_CUDA", raising=False)
    assert p.error(p.build) == "nothing is built"
    return p.capfd.readouterr().err


@case("COSEGFLOW_FORCE_CUDA is set, but …")
def _(p: Provoke) -> list[str]:
    for name in ("CUDA_HOME", "CUDA_PATH", "COSEGFLOW_CPU_ONLY"):
        p.patch.delenv(name, raising=False)
    p.patch.setenv("COSEGFLOW_FORCE_CUDA", "1")
    exists = Path.exists
    p.patch.setattr(Path, "exists", lambda path, **options: path.name != "nvcc" and exists(path, **options))
    without = p.error(p.setup)
    p.patch.setenv("COSEGFLOW_CPU_ONLY", "1")
    return [without, p.error(p.setup)]


@case("nvcc … does not compile for …")
def _(p: Provoke) -> list[str]:
    home = p.toolkit("11.4", "70 75 80 86")
    by_default = p.error(p.build)
    assert f"nvcc 11.4 in {home} does not compile for 9.0a" in by_default
    p.patch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 13.0+PTX;Ampere")
    asked = p.error(p.build)
    assert "does not compile for 13.0+PTX (TORCH_CUDA_ARCH_LIST=7.5 13.0+PTX;Ampere): name others (7.0, 7.5, 8" in asked
    return [by_default, asked]


@case("The detected CUDA version (…) mismatches the version that was used to compile")
def _(p: Provoke) -> str:
    p.patch.setattr(cpp_extension, "CUDA_HOME", str(p.toolkit("13.0", "80 90")))
    p.patch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(RuntimeError) as failure:
        cpp_extension._check_cuda_version("g++", cpp_extension.TorchVersion("12.2.0"))
    return failure.value.args[0].format(*failure.value.args[1:])  # torch leaves that out


@case("TORCH_CUDA_ARCH_LIST=… names 9.0 but not 9.0a: no kernel uses Hopper's own tensor core instructions")
def _(p: Provoke) -> str:
    p.toolkit("13.0", "80 90")
    p.patch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert p.error(p.build) == "nothing is built"
    return p.capfd.readouterr().err


# --------------------------------------------------------------------------------------------------------------------
# Loading


@case("cosegflow's compiled kernels could not be loaded: No module named 'cosegflow._C'")
def _(p: Provoke) -> str:
    return p.load(p.tmp)


@case("cosegflow's compiled kernels could not be loaded: …undefined symbol…")
def _(p: Provoke) -> str:
    source = "int a_function_of_another_torch(void); int PyInit__C(void) { return a_function_of_another_torch(); }\n"
    library = p.tmp / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=source, text=True, check=True)
    return p.load(p.tmp)


# --------------------------------------------------------------------------------------------------------------------
# Devices


@case("this build of cosegflow has no CUDA kernels: …")
def _(p: Provoke) -> str:
    p.patch.setattr(_library, "HAS_CUDA_KERNELS", False)
    p.patch.setattr(_library, "_BUILD_INFO", {"cuda_reason": "COSEGFLOW_CPU_ONLY is set"})
    with FakeTensorMode():  # CUDA tensors without a GPU
        x, flow = torch.empty(1, 3, 4, 5, device="cuda"), torch.empty(1, 2, 4, 5, device="cuda")
    text = p.error(cosegflow.warp, x, flow)
    assert "COSEGFLOW_CPU_ONLY is set. Install the CUDA toolkit" in text
    return text


@case("Torch not compiled with CUDA enabled")
def _(p: Provoke) -> str:
    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    assert f"torch {torch.__version__} is a CPU build" in info.report() or not _library.HAS_CUDA_KERNELS
    return p.error(FA.cuda)


@case("torch sees no CUDA device (driver, nvidia-smi, CUDA_VISIBLE_DEVICES)")
def _(p: Provoke) -> str:
    p.patch.setattr(_library, "build_info", lambda: {"cuda": "13.0", "cuda_reason": "found"})
    p.patch.setattr(torch.version, "cuda", "13.0")
    p.patch.setattr(torch.cuda, "is_available", lambda: False)
    return info.report()


@case("cosegflow has kernels for cpu and cuda, not for tensors on …")
def _(p: Provoke) -> str:
    with FakeTensorMode():
        x, flow = torch.empty(1, 3, 4, 5, device="mps"), torch.empty(1, 2, 4, 5, device="mps")
    return p.error(cosegflow.warp, x, flow)


@case("… must be on the device of …, got …")
def _(p: Provoke) -> list[str]:
    return [
        p.error(cosegflow.match, FA, FB.to("meta")),
        p.error(cosegflow.match, FA, FB, mask_b=torch.ones(2, 4, 5, device="meta")),
        p.error(cosegflow.match, FA, FB, beta=torch.ones(2, device="meta")),
        p.error(cosegflow.warp, FA, FLOW.to("meta")),
    ]


@case("device must be a CUDA device that torch sees, got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.warmup, "cpu")


@case("… CUDA kernels of … disagree with the simple ones on …")
def _(p: Provoke) -> str:
    for name in ("_agreed", "_chosen"):
        p.patch.setattr(_trust, name, {})
    for name in ("COSEGFLOW_SIMPLE", "COSEGFLOW_PORTABLE"):
        p.patch.delenv(name, raising=False)
    p.patch.setattr(_trust, "VERIFIED", frozenset())
    p.patch.setattr(_trust, "agrees", lambda *_: False)
    pretended = {"is_available": True, "get_device_capability": (8, 0), "is_current_stream_capturing": False}
    for name, answer in {**pretended, "get_device_name": "NVIDIA A100"}.items():
        p.patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    p.patch.setattr(torch, "empty", lambda *_, **options: torch.zeros(0, dtype=options["dtype"]))
    with pytest.warns(RuntimeWarning) as warned:
        assert _trust.choose("match", torch.float16, torch.device("cuda", 0)) == _trust.SIMPLE
    return str(warned[0].message)


# --------------------------------------------------------------------------------------------------------------------
# Arguments


@case("… must be a tensor, got …")
def _(p: Provoke) -> list[str]:
    return [p.error(cosegflow.match, FA.numpy(), FB.numpy()), p.error(cosegflow.match, FA, FB, mask_b=[[1.0]])]


@case("… must be float16, bfloat16, float32 or float64, got …")
def _(p: Provoke) -> list[str]:
    return [p.error(cosegflow.match, FA.byte(), FB.byte()), p.error(cosegflow.warp, FA, FLOW.int())]


@case("fb must have the dtype of fa, …, got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.correlation, FA.half(), FB)


@case("… must have shape (B, C, H, W), got …")
def _(p: Provoke) -> list[str]:
    return [p.error(cosegflow.match, FA[0], FB[0]), p.error(cosegflow.match, FA, FB.flatten(2))]


@case("… must have at least one channel, row and column, got shape …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.match, FA, FB[..., :0])


@case("fa and fb must have the same batch size and number of channels, got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.match, FA, FB[:1])


@case("… must have shape …2, H…, got …")
def _(p: Provoke) -> list[str]:
    last = FLOW.permute(0, 2, 3, 1)
    texts = [
        p.error(cosegflow.warp, FA, last),
        p.error(cosegflow.cycle_error, last, last),
        p.error(cosegflow.cycle_error, FLOW, last),
        p.error(cosegflow.resize_flow, last, (8, 10), (8, 10)),
    ]
    sizes = p.error(cosegflow.local_correlation, FA, FB, 2, last)
    assert all("where the channels come last, pass flow" in text for text in [*texts, sizes])
    assert "permute" not in p.error(cosegflow.warp, FA, torch.zeros(2, 3, 4, 5))
    assert sizes.startswith("flow must have shape (2, 2, 4, 5) for this fa, got (2, 4, 5, 2)")
    return texts


@case("corr must have shape (B, Ha, Wa, Hb, Wb) without empty sides, got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.soft_argmax, torch.ones(1, 2, 3, 6))


@case("… must be floating or bool, got …")
def _(p: Provoke) -> list[str]:
    mask = torch.ones(2, 4, 5, dtype=torch.uint8)
    return [p.error(cosegflow.match, FA, FB, mask), p.error(cosegflow.match, FA, FB, mask_b=mask)]


@case("… must have shape … or …, got …")
def _(p: Provoke) -> list[str]:
    return [p.error(cosegflow.match, FA, FB, mask_b=torch.ones(size)) for size in ((4, 5), (2, 32, 40))]


@case("beta must be …, got …")
def _(p: Provoke) -> list[str]:
    wrong = (float("nan"), 1e39, None, "50", torch.tensor([1, 2]), torch.ones(3), torch.ones(2, 1))
    return [p.error(cosegflow.match, FA, FB, beta=beta) for beta in wrong]


@case("kernel_sigma must be …, got …")
def _(p: Provoke) -> list[str]:
    return [p.error(cosegflow.match, FA, FB, kernel_sigma=s) for s in (0, -1.0, float("nan"), torch.tensor(2.0))]


@case("radius must be …, got …")
def _(p: Provoke) -> list[str]:
    texts = [p.error(cosegflow.local_correlation, FA, FB, r) for r in (-1, 16384, 2.0, torch.tensor(2))]
    assert "0 .. 16383" in texts[1]
    return texts


@case("values must …, got …")
def _(p: Provoke) -> list[str]:
    wrong = (torch.ones(2, 1, 4, 5, dtype=torch.int64), torch.ones(2, 4, 5), torch.ones(2, 1, 3, 5))
    return [p.error(cosegflow.transfer, FA, FB, values) for values in wrong]


@case("mode must be 'bilinear' or 'nearest', got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.warp, FA, FLOW, mode="bicubic")


@case("padding must be 'zeros' or 'border', got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.warp, FA, FLOW, padding="reflection")


@case("… must be a dense tensor (torch.strided), got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.match, FA, FB, mask_b=torch.ones(2, 4, 5).to_sparse())


@case("… must be True or False, got …")
def _(p: Provoke) -> str:
    return p.error(cosegflow.match, FA, FB, normalize=1)


@case("element 0 of tensors does not require grad and does not have a grad_fn")
def _(p: Provoke) -> str:
    return p.error(cosegflow.match(FA.clone().requires_grad_(), FB).confidence.sum().backward)


# --------------------------------------------------------------------------------------------------------------------
# Memory


@case("a tensor of shape (…) cannot be allocated: …")
def _(p: Provoke) -> str:
    large = torch.zeros(1, 1, 1, 1).expand(1, 1, 4096, 4096)  # 16 million positions, one number
    text = p.error(cosegflow.correlation, large, large)
    assert text.startswith("cosegflow: a tensor of shape (1, 4096, 4096, 4096, 4096) cannot be allocated: ")
    return text


@case("DataLoader worker (pid…")
def _(p: Provoke) -> str:
    class Killed(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    return p.error(next, iter(torch.utils.data.DataLoader(Killed(), num_workers=1)))


# --------------------------------------------------------------------------------------------------------------------
# torch.compile, torch.func, determinism


def compiled(function: Callable) -> Callable:
    return torch.compile(function, backend="eager", fullgraph=True)


@case("Observed exception")
def _(p: Provoke) -> str:
    return p.error(compiled(lambda x, flow: cosegflow.warp(x, flow)), FA, FLOW[:, :1])


@case("Could not guard on data-dependent expression")
def _(p: Provoke) -> str:
    match = compiled(lambda fa, fb, sigma: cosegflow.match(fa, fb, kernel_sigma=sigma.item()).flow)
    return p.error(match, FA, FB, torch.tensor(2.0))


def plain_warp(x: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    return torch.ops.cosegflow.warp(x, flow, "bilinear", "zeros", False)[0]


@case("we have not yet implemented the batching rule for cosegflow::…")
def _(p: Provoke) -> str:
    torch.func.vmap(plain_warp)(FA[None], FLOW[None])
    said = p.capfd.readouterr().err
    torch.func.vmap(cosegflow.warp)(FA[None], FLOW[None])
    assert p.capfd.readouterr().err == ""
    return said


@case("In order to use an autograd.Function with functorch transforms")
def _(p: Provoke) -> str:
    torch.func.grad(lambda x: cosegflow.warp(x, FLOW).sum())(FA)
    return p.error(torch.func.grad(lambda x: plain_warp(x, FLOW).sum()), FA)


@case("… does not have a deterministic implementation")
def _(p: Provoke) -> str:
    torch.use_deterministic_algorithms(True)
    try:
        fa, flow = FA.clone().requires_grad_(), FLOW.clone().requires_grad_()
        matched = cosegflow.match(fa, FB).flow.sum() + cosegflow.local_correlation(fa, FB, 1, flow).sum()
        (matched + cosegflow.warp(fa, flow).sum()).backward()
        return p.error(torch.zeros(3).put_, torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)


# --------------------------------------------------------------------------------------------------------------------
# Commands and training


def without(p: Provoke, package: str) -> None:
    """As if a package were not installed; cosegflow.joint.fit, which imports lightning first thing, does so again."""
    for name in [n for n in sys.modules if n.split(".")[0] == package or n == "cosegflow.joint.fit"]:
        p.patch.delitem(sys.modules, name)
    p.patch.setitem(sys.modules, package, None)


@case("… is missing: pip install 'cosegflow[joint]'")
def _(p: Provoke) -> list[str]:
    from cosegflow.joint.backbones import make_backbone

    photographs = [p.photograph()] * 2
    without(p, "lightning")
    texts = [p.fit("--data.dataset", "stamps", "--data.root", "none")]
    without(p, "efficientnet_lite_pytorch")
    texts.append(p.command("match", *photographs, "--out", p.tmp / "out"))
    return [*texts, p.error(make_backbone, "efficientnet-lite0")]


@case("No module named 'lightning'")
def _(p: Provoke) -> str:
    for name in [n for n in sys.modules if n.split(".")[0] == "lightning" or n == "cosegflow.joint.fit"]:
        p.patch.delitem(sys.modules, name)
    p.patch.setattr(sys, "path", [folder for folder in sys.path if not (Path(folder) / "lightning").is_dir()])
    return p.error(importlib.import_module, "cosegflow.joint.fit")


@case("backbone: …: no pretrained weights …")
def _(p: Provoke) -> list[str]:
    from cosegflow.joint.backbones import make_backbone

    for name in ("torchvision", "timm"):
        p.patch.setitem(sys.modules, name, None)
    return [p.error(make_backbone, name) for name in ("resnet101", "mobilenet-v2")]


@case("backbone: …: cannot be loaded …")
def _(p: Provoke) -> str:
    from cosegflow.joint.backbones import make_backbone

    for name in ("transformers", "timm"):
        p.patch.setitem(sys.modules, name, None)
    return p.error(make_backbone, "dinov2-small")


@case("weights: …")
def _(p: Provoke) -> list[str]:
    from cosegflow.joint.backbones import make_backbone

    torch.save({"conv1.weight": torch.zeros(1)}, p.tmp / "other.pth")
    (p.tmp / "text.pth").write_text("no weights")
    texts = [p.error(make_backbone, "resnet50", str(p.tmp / f"{n}.pth")) for n in ("none", "text", "other")]
    assert all(w in t for w, t in zip(("no such file", "cannot be read", "does not fit"), texts, strict=True))
    return texts


@case("not an image that Pillow can read")
def _(p: Provoke) -> str:
    text = p.tmp / "text.jpg"
    text.write_text("404")
    return p.command("match", p.photograph(), text, "--out", p.tmp / "out")


@case("damaged or unreadable image (…)")
def _(p: Provoke) -> str:
    cut = p.tmp / "cut.png"
    cut.write_bytes(p.photograph().read_bytes()[:500])
    return p.command("match", cut, cut, "--out", p.tmp / "out")


@case("need a folder of photographs for each category")
def _(p: Provoke) -> list[str]:
    empty = p.fit("--data.dataset", "folder", "--data.root", p.tmp)
    p.photograph()
    loose = p.fit("--data.dataset", "folder", "--data.root", p.tmp)
    assert "got 1 photographs that lie loose" in loose
    return [empty, loose]


@case("training needs a category of at least … photographs, got …")
def _(p: Provoke) -> str:
    (p.tmp / "cats").mkdir()
    p.photograph().rename(p.tmp / "cats" / "1.png")
    return p.fit("--data.dataset", "folder", "--data.root", p.tmp)


@case("root: need an existing folder, got …")
def _(p: Provoke) -> str:
    return p.fit("--data.dataset", "folder", "--data.root", p.tmp / "nowhere")


@case("--checkpoint: …")
def _(p: Provoke) -> list[str]:
    from cosegflow.joint.checkpoint import load_checkpoint, save_checkpoint
    from cosegflow.joint.model import JointModel, ModelConfig

    save_checkpoint(JointModel(ModelConfig(backbone="tiny")), p.tmp / "model.pt")
    content = torch.load(p.tmp / "model.pt", weights_only=True)
    torch.save({**content, "model": {**content["model"], "no_setting": 1}}, p.tmp / "other.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, p.tmp / "weights.pt")
    (p.tmp / "text.pt").write_text("no checkpoint")
    named = {"nowhere": "no such file", "text.pt": "cannot be read as a checkpoint (Weights only load failed)"}
    named |= {".": "has no config.json", "weights.pt": "is not a checkpoint", "other.pt": "does not fit this version"}
    texts = {n: p.error(load_checkpoint, p.tmp / n, "--checkpoint") for n in named}
    assert all(words in texts[name] for name, words in named.items()), texts
    page = PAGE.read_text(encoding="utf-8")
    assert all(words.partition(" (")[0] in page for words in named.values())
    return list(texts.values())


@case("--resume: was trained with another …; a run goes on only with the same")
def _(p: Provoke) -> str:
    fit, config = pytest.importorskip("cosegflow.joint.fit"), pytest.importorskip("cosegflow.joint.config").FitConfig()
    other = replace(config, model=replace(config.model, backbone="tiny"))
    return p.error(fit.check_resume, other, config, "--resume")


@case("--out: …")
def _(p: Provoke) -> list[str]:
    photograph, run = p.photograph(), p.tmp / "run"
    texts = [p.command("match", photograph, photograph, "--out", out) for out in (photograph, "/proc/out")]
    assert "exists and is not a folder" in texts[0] and "cannot write to /proc" in texts[1]
    run.mkdir()
    (run / "last.safetensors").touch()
    return [*texts, p.fit("--data.dataset", "stamps")]


@case("… is no setting…")
def _(p: Provoke) -> str:
    (p.tmp / "my.yaml").write_text("train:\n  step: 3\n")
    text = p.fit("--config", p.tmp / "my.yaml")
    assert "my.yaml: train.step is no setting; did you mean 'train.steps'?" in text
    return text


@case("unrecognized arguments: …")
def _(p: Provoke) -> str:
    return p.fit("--train.stepz", "3")


@case("train.accelerator, train.devices, train.strategy: …")
def _(p: Provoke) -> str:
    fit, config = pytest.importorskip("cosegflow.joint.fit"), pytest.importorskip("cosegflow.joint.config").FitConfig()
    other = replace(config, out=p.tmp, train=replace(config.train, accelerator="gpu", devices=99))
    return p.error(fit._make_trainer, other, [], 99, 1)


@case("train: the weights are not finite at step …")
def _(p: Provoke) -> str:
    callbacks = pytest.importorskip("cosegflow.joint.callbacks")
    learnt = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(learnt.bias, float("nan"))
    trainer = type("Trainer", (), {"lightning_module": learnt, "global_step": 7})
    return p.error(callbacks.KeepCheckpoints(p.tmp, 1, {}, None)._save, trainer, "last")


# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", CASES)
def test_the_message_is_provoked(heading, monkeypatch, tmp_path, capfd, one_thread):
    assert heading in SECTIONS, "the page has no such section"
    provoked = CASES[heading](Provoke(monkeypatch, tmp_path, capfd))
    texts = [provoked] if isinstance(provoked, str) else provoked
    assert texts and all(fits(heading, text) for text in texts), texts
    for quoted in SECTIONS[heading].quotes:
        assert any(fits(quoted, text) for text in texts), (quoted, texts)


def test_every_section_is_provoked_or_says_why_not():
    not_provoked = {heading for heading, section in SECTIONS.items() if section.why_not}
    assert not_provoked.isdisjoint(CASES)
    assert set(SECTIONS) == not_provoked | set(CASES)


def test_what_is_not_provoked_stands_in_the_sources():
    folders = ROOT / "csrc" / "cuda", ROOT / "csrc" / "torch"
    code = "".join(path.read_text() for folder in folders for path in folder.rglob("*.c*"))
    joined = re.sub(r'"\s*\n\s*"', "", code)  # literals that go on in the next line
    for heading, section in SECTIONS.items():
        if section.why_not and "a message of torch" not in section.why_not:
            assert heading in joined, heading


def test_what_is_quoted_must_fit():
    assert fits("flow must have …, got …", "cosegflow: flow must have (2, H), got (3)")
    assert not fits("flow must have …, got …", "flow must be (2, H), got (3)")
    assert not fits("a (b) is .", "a b is .")


def test_memory_that_runs_out_is_torchs_own_error(monkeypatch):
    """The binding can only raise RuntimeError; code that catches torch's class must see it."""

    def full(*_: object) -> None:
        raise RuntimeError("cosegflow: a tensor of shape (9, 9) cannot be allocated: CUDA out of memory. Tried")

    monkeypatch.setattr(_transforms, "operators", type("Operators", (), {"warp": staticmethod(full)}))
    with pytest.raises(torch.OutOfMemoryError, match=r"cannot be allocated: CUDA out of memory"):
        cosegflow.warp(FA, FLOW)


def test_ninja_of_an_environment_that_is_not_activated(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    Provoke(monkeypatch, tmp_path, capfd).setup()
    assert os.environ["PATH"].split(os.pathsep)[-1] == sysconfig.get_path("scripts")
