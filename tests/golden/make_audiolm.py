"""Writes audiolm_plain/ and audiolm_widths/: small SoundStreams of audiolm-pytorch with random weights, and what they
compute.

Run by hand in this folder:  python make_audiolm.py
It needs torch, torchaudio, safetensors, einops, vector-quantize-pytorch, local-attention, gateloop-transformer, packaging
and, without its other dependencies (pip install --no-deps), audiolm-pytorch.

Each folder has

  model.safetensors     the state dict as SoundStream.save and scripts/convert_pth.py write it, with the arguments of the
                        class in the metadata, without discriminators and spectrograms
  results.safetensors   the results below

  audio.<frames>     [samples]         random; a whole number of hops
  latents.<frames>   [frames, latent]  the encoder's output
  codes.<frames>     [frames, codebooks]
  output.<frames>    [samples]         the decoder's output for these codes

audiolm_plain has the class's own dilations and rate, audiolm_widths has others, and widths that do not double. The class
cannot reflect a signal that is shorter than its padding, so the second clip is the shortest one that it takes.

Latents and output were computed in double and rounded once to float. The class quantises in float. The script stops if
the codes are not those of a search in double, or if the distances to the two nearest codes of a stage differ by less than
2e-4 of them, so that rounding would choose the code.
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types
from importlib.metadata import version

import safetensors
import safetensors.torch
import torch

HERE = pathlib.Path(__file__).resolve().parent
FORMS = {
    "audiolm_plain": dict(channels=2, strides=(2, 5), channel_mults=(2, 4)),
    "audiolm_widths": dict(channels=2, strides=(4, 3), channel_mults=(3, 4), target_sample_hz=24000,
                           enc_cycle_dilations=(1, 2), dec_cycle_dilations=(1, 2), rq_ema_decay=0.9),
}
LENGTHS = {"audiolm_plain": (32, 11), "audiolm_widths": (32, 7)}
SEEDS = {"audiolm_plain": 1, "audiolm_widths": 2}
BOOKS, SIZE, LATENT = 3, 16, 8
LEFT_OUT = ("discriminators.", "stft_discriminator.", "mel_spec_transforms.")


def soundstream_class():
    """The package's own __init__ imports everything that AudioLM needs, fairseq among it."""
    found = [pathlib.Path(p) / "audiolm_pytorch" for p in sys.path if (pathlib.Path(p) / "audiolm_pytorch").is_dir()]
    package = types.ModuleType("audiolm_pytorch")
    package.__path__ = [str(found[0])]
    sys.modules["audiolm_pytorch"] = package
    from audiolm_pytorch.soundstream import SoundStream
    return SoundStream


@torch.no_grad()
def draw(model):
    """Weights by which activations keep their scale, so that every layer matters."""
    for half in (model.encoder, model.decoder):
        for name, p in half.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p, std=0.1)
            else:
                torch.nn.init.normal_(p, std=(p.shape[1] * min(p.shape[2], 7)) ** -0.5)
    for film in (model.encoder_film, model.decoder_film):
        for p in film.parameters():
            torch.nn.init.normal_(p)


@torch.no_grad()
def draw_codebooks(model, latents):
    """Codes near the residuals that occur, with the averages of a training run."""
    residual = latents
    for stage in model.rq.rvqs[0].layers:
        book = stage._codebook
        rows = residual[torch.randperm(len(residual))[:SIZE]]
        book.embed.copy_((rows + 0.3 * residual.std() * torch.randn_like(rows))[None])
        book.cluster_size.copy_(torch.empty(1, SIZE).uniform_(0.5, 8))
        book.embed_avg.copy_(book.embed * book.cluster_size[..., None])
        book.initted.fill_(True)
        residual = residual - book.embed[0][torch.cdist(residual, book.embed[0]).argmin(1)]


def search(model, latents):
    """The codes in double, and the least difference of the two smallest distances over the smaller one."""
    residual, least, codes = latents, float("inf"), []
    for stage in model.rq.rvqs[0].layers:
        embed = stage._codebook.embed[0].double()
        two = torch.cdist(residual, embed).topk(2, largest=False)
        least = min(least, ((two.values[:, 1] - two.values[:, 0]) / two.values[:, 0]).min().item())
        codes.append(two.indices[:, 0])
        residual = residual - embed[two.indices[:, 0]]
    return torch.stack(codes, 1), least


@torch.no_grad()
def make(SoundStream, name):
    torch.manual_seed(SEEDS[name])
    model = SoundStream(codebook_dim=LATENT, codebook_size=SIZE, rq_num_quantizers=BOOKS, use_local_attn=False,
                        complex_stft_discr_kwargs=dict(channels=1), **FORMS[name]).eval()
    hop = model.downsample_factor
    draw(model)
    audio = {frames: 0.5 * torch.randn(frames * hop) for frames in LENGTHS[name]}
    draw_codebooks(model, model.encoder(audio[32][None, None])[0].T)

    shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / name).mkdir()
    with tempfile.TemporaryDirectory() as folder:
        saved, whole = pathlib.Path(folder) / "saved.pt", pathlib.Path(folder) / "whole.safetensors"
        model.save(saved)
        subprocess.run([sys.executable, HERE.parents[1] / "scripts/convert_pth.py", saved, whole], check=True)
        with safetensors.safe_open(whole, framework="pt") as file:
            kept = {k: file.get_tensor(k) for k in file.keys() if not k.startswith(LEFT_OUT)}
            safetensors.torch.save_file(kept, HERE / name / "model.safetensors", file.metadata())

    results = {}
    for frames, x in audio.items():
        embed = [stage._codebook.embed[0].double() for stage in model.rq.rvqs[0].layers]
        model.double()
        latents = model.encoder(x.double()[None, None])[0].T
        codes, least = search(model, latents)
        if least < 2e-4:
            raise SystemExit(f"{name}: the two nearest codes of a frame differ by {least:.1e}; choose another seed")
        quantised = sum(e[codes[:, i]] for i, e in enumerate(embed))
        output = model.decode(quantised[None]).reshape(-1)
        model.float()
        assert torch.equal(model.tokenize(x[None])[0, 0], codes)
        decoded = model.decode_from_codebook_indices(codes[None]).reshape(-1)
        assert (decoded - output).norm() < 1e-5 * output.norm()
        print(f"{name}: {frames} frames, latents {latents.square().mean().sqrt():.3f}, "
              f"output {output.square().mean().sqrt():.3f}, margin {least:.1e}, codes {[len(c.unique()) for c in codes.T]}")
        results |= {f"audio.{frames}": x, f"latents.{frames}": latents.float().contiguous(),
                    f"codes.{frames}": codes.to(torch.int32).contiguous(), f"output.{frames}": output.float()}
    made_by = (f"make_audiolm.py with audiolm-pytorch {version('audiolm-pytorch')}, vector-quantize-pytorch "
               f"{version('vector-quantize-pytorch')}, torch {torch.__version__}")
    safetensors.torch.save_file(results, HERE / name / "results.safetensors", {"made_by": made_by})
    for file in (HERE / name).iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    of_audiolm = soundstream_class()
    for form in FORMS:
        make(of_audiolm, form)
