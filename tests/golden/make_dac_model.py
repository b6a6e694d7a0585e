"""Writes dac_model/ and dac_model.inc: a small DacModel of transformers with random weights, audio, and the codes and
audio that transformers makes of it, for tests/formats/weights_file_test.cpp.

Run by hand in this folder, needs torch and transformers:  python make_dac_model.py
"""
import pathlib

import torch
import transformers

FRAMES, SEED = 80, 3
HERE = pathlib.Path(__file__).resolve().parent


def draw(model):
    """Weights by which activations keep their scale, so that every layer matters."""
    for name, p in model.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.uniform_(p, 0.5, 2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.05)
        elif "codebook" in name:
            torch.nn.init.normal_(p)
        else:
            taps = 2 if "conv_t1" in name else p.shape[2]
            channels = p.shape[0] if "conv_t1" in name else p.shape[1]
            scale = 0.3 if "res_unit" in name and "conv2" in name else 0.1 if name == "decoder.conv2.weight" else 1
            torch.nn.init.normal_(p, std=scale * (channels * taps) ** -0.5)


def numbers(name, kind, values, form):
    lines, text = [], f"const {kind} {name}[] = {{"
    for v in values:
        text += form(v) + ", "
        if len(text) > 105:
            lines.append(text.rstrip())
            text = "    "
    return "\n".join([*lines, text.rstrip(" ,") + "};\n"])


@torch.no_grad()
def main():
    torch.manual_seed(SEED)
    config = transformers.DacConfig(encoder_hidden_size=2, downsampling_ratios=[2, 3], decoder_hidden_size=8, n_codebooks=3,
                                    codebook_size=8, codebook_dim=2, sampling_rate=22050)
    model = transformers.DacModel(config).eval()
    draw(model)
    audio = 0.3 * torch.randn(1, 1, FRAMES * config.hop_length)
    codes = model.encode(audio).audio_codes
    output = model.decode(audio_codes=codes).audio_values.reshape(-1)
    print(f"RMS of the output {output.square().mean().sqrt():.3f}, codes in use "
          f"{[len(stage.unique()) for stage in codes[0]]}")
    model.save_pretrained(HERE / "dac_model")
    text = f"// Written by make_dac_model.py with transformers {transformers.__version__}, torch {torch.__version__}.\n"
    text += numbers("golden_input", "float", audio.reshape(-1).tolist(), lambda v: f"{v:.8e}f")
    text += numbers("golden_codes", "int32_t", codes[0].T.reshape(-1).tolist(), str)
    text += numbers("golden_output", "float", output.tolist(), lambda v: f"{v:.8e}f")
    (HERE / "dac_model.inc").write_text(text)


main()
