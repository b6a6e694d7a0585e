#!/usr/bin/env python3
"""Converts weights of descript-audio-codec (.pth), encodec (.th) and audiolm-pytorch's SoundStream (.pt) from and to
safetensors. Run by hand, needs torch and safetensors.

  scripts/convert_pth.py weights.pth model.safetensors     for nacre (--model model.safetensors)
  scripts/convert_pth.py model.safetensors weights.pth     of nacre export --format descript, for descript-audio-codec
  scripts/convert_pth.py encodec_24khz-d7cc33bc.th model.safetensors
  scripts/convert_pth.py model.safetensors weights.th      of nacre export --format encodec, for load_state_dict
  scripts/convert_pth.py soundstream.pt model.safetensors  of SoundStream.save or its trainer; averaged weights, if any
  scripts/convert_pth.py model.safetensors soundstream.pt  of nacre export --format audiolm, for
                                                           SoundStream.init_and_load_from(path, strict=False)

The arguments of the classes DAC and SoundStream are kept as JSON under "kwargs" in the metadata of the safetensors
file. A .th file is a state dict alone. The file is loaded without running code from it (weights_only); SoundStream's
arguments, which are a pickle inside of it, without any class or function.
"""
import io
import json
import pathlib
import pickle
import sys


class PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and containers of them."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def plain(source, data):
    """The arguments in a pickle; none if they are more than plain values."""
    try:
        return PlainUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as e:
        print(f"{source}: the arguments of the class hold an object ({e}) and are left out; give nacre --config or "
              "--sample-rate", file=sys.stderr)
        return None


def soundstream(saved):
    """The tensors of a file of audiolm-pytorch: the averaged weights of a training run, or else those of the model."""
    prefix = "ema_model."
    if "ema_model" in saved:
        return {name[len(prefix):]: t for name, t in saved["ema_model"].items() if name.startswith(prefix)}
    return saved["model"]


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    source, target = map(pathlib.Path, sys.argv[1:])
    if target.exists():
        sys.exit(f"{target} exists")
    import safetensors.torch
    import torch
    if source.suffix == ".safetensors":
        with safetensors.safe_open(source, framework="pt") as file:
            kwargs = json.loads((file.metadata() or {}).get("kwargs", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if any(name.startswith("quantizer.vq.") for name in tensors):  # encodec
            torch.save(tensors, target)
            return
        if kwargs is None:
            sys.exit(f'{source}: has no "kwargs" in its metadata; nacre export --format descript or audiolm writes '
                     "them")
        if any(name.startswith("rq.rvqs.") for name in tensors):  # audiolm-pytorch
            config = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
            torch.save({"model": tensors, "config": pickle.dumps(config)}, target)
            return
        torch.save({"state_dict": tensors, "metadata": {"kwargs": kwargs}}, target)
        return
    saved = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(saved.get("config"), bytes):
        tensors, kwargs = soundstream(saved), plain(source, saved["config"])
    else:
        tensors, kwargs = saved.get("state_dict", saved), saved.get("metadata", {}).get("kwargs")
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": "pt"}
    if kwargs is not None:
        metadata["kwargs"] = json.dumps(kwargs)
    safetensors.torch.save_file(tensors, target, metadata)


if __name__ == "__main__":
    main()
