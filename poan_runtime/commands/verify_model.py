"""`poan-run --verify`: what the stored vectors say of a model file on this machine."""

import argparse

from poan_runtime.commands.say import Voice
from poan_runtime.engines.backend import EngineOptions, open_backend, spoken
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from poan_runtime.models.verdicts_here import is_own


def verify(args: argparse.Namespace, voice: Voice) -> int:
    """Judge a model file on this machine by its stored vectors: 0 pass, 3 fail.

    What is named is what runs, or the command fails: the verdict on a plan is not given by an
    ONNX file.
    """
    from poan_runtime.engines import verify as parity
    from poan_runtime.engines.nvidia import device_index
    from poan_runtime.engines.tensorrt.build.judge import inside_of

    model = find_model(args.model, judged=False)
    device = "cuda" if model.file.kind == "plan" and args.device == "auto" else args.device
    options = EngineOptions(
        backend=args.backend, device=device, threads=args.threads, precision=args.precision
    )
    looked = parity.look(model, inside_of(model, device_index(device)))
    opened = open_backend(model, options, judged=False)
    precision = opened.precision or model.file.precision
    voice.say(f"{spoken(f'{opened.name} {opened.version}', opened.device)}, {precision}")
    voice.detail(f"{opened.name} {opened.version} on {opened.device}: {opened.reason}")
    if args.precision == "bf16" and opened.precision != "bf16":
        raise PoanError(f"--precision bf16: {'; '.join(opened.notices)}")
    found = parity.verify(model, opened.backend, opened.precision, looked)
    for line in parity.check_lines(found):
        voice.say(line)
    if opened.device.startswith("cuda"):
        verdict = parity.write_gpu_verdict(model, opened, found)
    elif opened.precision in (None, model.file.precision):
        verdict = parity.write_verdict(model.path.parent, model.file.name, found)
    else:
        verdict = parity.write_cpu_verdict(model, opened.precision, opened.version, found)
    for line in parity.verdict_lines(model, found, verdict):
        voice.say(line)
    if not is_own(model.path.parent):
        voice.say("the verdict is kept in the cache folder: the model's own is not to be changed")
    return 0 if verdict.verdict == "pass" else 3
