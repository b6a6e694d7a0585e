#!/usr/bin/env python3
"""Converts weights of descript-audio-codec (.pth) and encodec (.th) from and to safetensors. Run by hand, needs torch and
safetensors.

  scripts/convert_pth.py weights.pth model.safetensors     for nacre (--model model.safetensors)
  scripts/convert_pth.py model.safetensors weights.pth     of nacre export --format descript, for descript-audio-codec
  scripts/convert_pth.py encodec_24khz-d7cc33bc.th model.safetensors
  scripts/convert_pth.py model.safetensors weights.th      of nacre export --format encodec, for load_state_dict

The arguments of the class DAC are kept as JSON under "kwargs" in the metadata of the safetensors file. A .th file is a
state dict alone. The .pth or .th file is loaded without running code from it (weights_only).
"""
import json
import pathlib
import sys


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
            sys.exit(f'{source}: has no "kwargs" in its metadata; nacre export --format descript writes them')
        torch.save({"state_dict": tensors, "metadata": {"kwargs": kwargs}}, target)
        return
    saved = torch.load(source, map_location="cpu", weights_only=True)
    tensors = saved.get("state_dict", saved)
    kwargs = saved.get("metadata", {}).get("kwargs")
    tensors = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": "pt"}
    if kwargs is not None:
        metadata["kwargs"] = json.dumps(kwargs)
    safetensors.torch.save_file(tensors, target, metadata)


if __name__ == "__main__":
    main()
