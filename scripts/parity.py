#!/usr/bin/env python3
"""Compares nacre with DacModel and EncodecModel of transformers, and with the package encodec, in the layouts of the
published models, with random weights.

  python3 scripts/parity.py [--nacre build/cpu/nacre] [--seconds 10]
                            [--layouts dac_16khz,dac_24khz,dac_44khz,encodec_24khz,encodec_32khz]

Run by hand; needs torch and transformers (python3 -m venv; pip install torch transformers), and encodec for its layouts.
For each layout it

  - draws weights by which activations keep their scale, and saves the model with save_pretrained;
  - encodes noise-like audio by both programs and compares the codes;
  - decodes the codes of transformers by both programs and compares the audio;
  - exports nacre's model with --format hf, loads that with from_pretrained, and compares weights, codes and audio with
    the first model;
  - for EnCodec, also exports it with --format encodec, loads that with load_state_dict, and compares codes and audio.

The audio has a peak of exactly 0.95, to which nacre encode scales its input, so that both programs see equal samples.
A code that differs is a near tie if, for DAC, the similarities of both codes differ by less than 1e-5 of the largest one;
for EnCodec, if what is quantised is nearer to the plane between both codes than 1e-5 of the norm of the latent. Only the
first differing stage of a frame is judged, because later stages see another residual.

Prints the tables of docs/exchange.md. Exit code 1 if a code differs without a near tie, a tensor is missing or unexpected,
or audio differs by more than 1e-5.
"""
import argparse
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

LAYOUTS = {  # strides, codebooks, sample rate
    "dac_16khz": ([2, 4, 5, 8], 12, 16000),
    "dac_24khz": ([2, 4, 5, 8], 32, 24000),
    "dac_44khz": ([2, 4, 8, 8], 9, 44100),
}
ENCODEC = {
    "encodec_24khz": {},
    "encodec_32khz": dict(num_filters=64, upsampling_ratios=[8, 5, 4, 4], sampling_rate=32000, codebook_size=2048,
                          target_bandwidths=[2.2], use_causal_conv=False, use_conv_shortcut=False),
}
DAC_HEAD = ("layout | audio | codes | differ | no near tie | samples fewer | audio | audio, end | keys | weights, back | "
            "codes, back | audio, back")
ENCODEC_HEAD = ("layout | audio | codes | differ | no near tie | audio | keys | weights, back | codes, back | audio, back | "
                "codes, encodec | audio, encodec")
LIMIT = 1e-5


def draw(model, seed):
    torch.manual_seed(seed)
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


def make_audio(samples, seed):
    """Noise through a filter that changes, with a peak of exactly 0.95 in float."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(samples)
    smooth = np.convolve(noise, np.hanning(9) / 4, "same")
    mix = 0.5 + 0.5 * np.sin(np.arange(samples) * 2 * np.pi / 7919)
    audio = mix * noise + (1 - mix) * smooth
    audio = (audio / np.abs(audio).max() * 0.9).astype(np.float32)
    audio[np.abs(audio).argmax()] = np.float32(0.95)
    return audio


def write_wav(path, audio, rate):
    data = audio.astype("<f4").tobytes()
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " +
                     struct.pack("<IHHIIHH", 16, 3, 1, rate, 4 * rate, 4, 32) + b"data" + struct.pack("<I", len(data)) + data)


def read_wav(path):
    data = path.read_bytes()
    at = 12
    while data[at:at + 4] != b"data":
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    size = struct.unpack_from("<I", data, at + 4)[0]
    return np.frombuffer(data[at + 8:at + 8 + size], "<f4")


def read_stream(path):
    """The codes of a .nacre stream of one channel, [frames, codebooks], and its gain (docs/format.md)."""
    data = path.read_bytes()
    books, = struct.unpack_from("<H", data, 22)
    size, = struct.unpack_from("<I", data, 28)
    gain, = struct.unpack_from("<f", data, 36)
    bits, at, out = int(size - 1).bit_length(), 60, []
    while data[at:at + 1] == b"P":
        frames, = struct.unpack_from("<I", data, at + 8)
        length = (frames * books * bits + 7) // 8
        flat = np.unpackbits(np.frombuffer(data[at + 12:at + 12 + length], np.uint8), bitorder="little")
        flat = flat[:frames * books * bits].reshape(frames, books, bits)
        out.append((flat.astype(np.int64) << np.arange(bits)).sum(2))
        at += 16 + length
    return np.concatenate(out), gain


def write_stream_codes(path, target, codes):
    """The stream `path` with other codes, and its checksums renewed."""
    data = bytearray(path.read_bytes())
    books, = struct.unpack_from("<H", data, 22)
    size, = struct.unpack_from("<I", data, 28)
    bits, at, done = int(size - 1).bit_length(), 60, 0
    header_crc, = struct.unpack_from("<I", data, 56)
    while data[at:at + 1] == b"P":
        frames, = struct.unpack_from("<I", data, at + 8)
        length = (frames * books * bits + 7) // 8
        part = codes[done:done + frames].reshape(-1)
        flat = (part[:, None] >> np.arange(bits)) & 1
        packed = np.packbits(flat.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
        data[at + 12:at + 12 + length] = packed
        struct.pack_into("<I", data, at + 12 + length, crc32c(bytes(data[at:at + 12 + length]), header_crc))
        done += frames
        at += 16 + length
    target.write_bytes(data)


def crc32c(data, crc=0, table=[]):
    if not table:
        for i in range(256):
            for _ in range(8):
                i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
            table.append(i)
    crc ^= 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


def relative(a, b):
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


@torch.no_grad()
def compare_codes(model, audio, ours, theirs):
    """Differing codes, and those among them that are no near tie at the first differing stage of their frame."""
    differs = ours != theirs
    wrong, frames = 0, np.flatnonzero(differs.any(1))
    if len(frames):
        z = model.encoder(torch.from_numpy(audio)[None, None]).double()
        for f in frames:
            residual = z[:, :, f:f + 1]
            for i, stage in enumerate(model.quantizer.quantizers):
                stage = stage.double()
                if differs[f, i]:
                    e = torch.nn.functional.normalize(stage.in_proj(residual)[0, :, 0], dim=0)
                    similar = torch.nn.functional.normalize(stage.codebook.weight, dim=1) @ e
                    wrong += bool((similar[theirs[f, i]] - similar[ours[f, i]]).abs() > 1e-5 * similar.abs().max())
                    stage.float()
                    break
                residual = residual - stage.out_proj(stage.codebook.weight[theirs[f, i]][None, :, None])
                stage.float()
    return int(differs.sum()), wrong


def reach_of_decoder(strides):
    """Samples at the end of the decoder's output that its last input frame can change, rounded up to frames."""
    reach, rate = 3.0, 1
    for s in reversed(strides):
        rate *= s
        reach += 2 / (rate / s) + 3 * (1 + 3 + 9) / rate
    hop = int(np.prod(strides))
    return int(np.ceil(reach + 3 / rate + 1)) * hop


@torch.no_grad()
def one(name, options, folder):
    strides, books, rate = LAYOUTS[name]
    hop = int(np.prod(strides))
    nacre = lambda *words: subprocess.run([options.nacre, *map(str, words)], check=True)
    model = transformers.DacModel(transformers.DacConfig(
        encoder_hidden_size=64, downsampling_ratios=strides, decoder_hidden_size=1536, n_codebooks=books,
        codebook_size=1024, codebook_dim=8, sampling_rate=rate)).eval()
    draw(model, 1)
    model.save_pretrained(folder / "hf")
    audio = make_audio(round(options.seconds * rate / hop) * hop, 2)
    write_wav(folder / "in.wav", audio, rate)
    theirs = model.encode(torch.from_numpy(audio)[None, None]).audio_codes
    nacre("encode", folder / "in.wav", "-o", folder / "in.nacre", "-m", folder / "hf", "-q")
    ours, gain = read_stream(folder / "in.nacre")
    if gain != 1:
        raise SystemExit(f"the gain of the stream is {gain}, expected 1")
    theirs_flat = theirs[0].T.numpy()
    different, wrong = compare_codes(model, audio, ours, theirs_flat)

    decoded = model.decode(audio_codes=theirs).audio_values.reshape(-1).numpy()
    write_stream_codes(folder / "in.nacre", folder / "theirs.nacre", theirs_flat)
    nacre("decode", folder / "theirs.nacre", "-o", folder / "out.wav", "-m", folder / "hf", "-q", "--float")
    out = read_wav(folder / "out.wav")
    shorter = len(out) - len(decoded)
    compared = len(out) - (reach_of_decoder(strides) if shorter else 0)
    audio_error = relative(out[:compared], decoded[:compared])
    tail_error = relative(out[compared:len(decoded)], decoded[compared:]) if shorter else 0

    nacre("export", "--format", "hf", "-m", folder / "hf", "-o", folder / "back", "-q")
    back, info = transformers.DacModel.from_pretrained(folder / "back", output_loading_info=True)
    keys = len(info["missing_keys"]) + len(info["unexpected_keys"])
    transformers.AutoFeatureExtractor.from_pretrained(folder / "back")
    before, after = model.state_dict(), back.eval().state_dict()
    weights = max(relative(after[k].numpy(), v.numpy()) for k, v in before.items())
    back_codes = int((back.encode(torch.from_numpy(audio)[None, None]).audio_codes != theirs).sum())
    back_audio = relative(back.decode(audio_codes=theirs).audio_values.reshape(-1).numpy(), decoded)
    print(f"| {name} | {len(audio) / rate:.2f} s | {ours.size} | {different} | {wrong} | {shorter} | {audio_error:.1e} | "
          f"{tail_error:.1e} | {keys} | {weights:.1e} | {back_codes} | {back_audio:.1e} |", flush=True)
    return wrong == 0 and keys == 0 and max(audio_error, back_audio) < LIMIT


@torch.no_grad()
def draw_encodec(model, audio):
    """Weights by which activations keep their scale. Codes have a third of the residual's norm, as much as the nearest of
    1024 random directions in 128 dimensions can remove, so that the residual shrinks slowly over the stages."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p, std=0.05)
        elif "lstm" in name:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("original1"):
            torch.nn.init.normal_(p, std=(p.shape[1] * min(p.shape[2], 7)) ** -0.5)
    for name, p in model.named_parameters():
        if name.endswith("original0"):
            v = model.get_parameter(name[:-1] + "1")
            p.copy_(v.flatten(1).norm(dim=1).reshape(p.shape) * torch.empty_like(p).uniform_(0.8, 1.25))
    residual = model.encoder(torch.from_numpy(audio)[None, None])[0].T
    for stage in model.quantizer.layers:
        book = stage.codebook
        book.embed.copy_(residual.square().mean().sqrt() / 3 * torch.randn_like(book.embed))
        book.cluster_size.uniform_(0.5, 8)
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        residual = residual - book.embed[torch.cdist(residual, book.embed).argmin(1)]


@torch.no_grad()
def compare_euclidean(model, audio, ours, theirs):
    """As compare_codes()."""
    differs = ours != theirs
    wrong, frames = 0, np.flatnonzero(differs.any(1))
    if len(frames):
        z = model.encoder(torch.from_numpy(audio)[None, None])[0].T.double()
        for f in frames:
            first = int(differs[f].argmax())
            books = [stage.codebook.embed.double() for stage in model.quantizer.layers]
            residual = z[f] - sum((books[i][theirs[f, i]] for i in range(first)), torch.zeros_like(z[f]))
            a, b = books[first][ours[f, first]], books[first][theirs[f, first]]
            to_plane = ((residual - (a + b) / 2) @ (a - b) / (a - b).norm()).abs()
            wrong += bool(to_plane > 1e-5 * z[f].norm())
    return int(differs.sum()), wrong


def package_model(c, safetensors_file):
    """The model of the package encodec, with the weights of a file."""
    import encodec
    import encodec.modules
    import encodec.quantization
    import safetensors.torch
    shared = dict(channels=1, dimension=c.hidden_size, n_filters=c.num_filters, ratios=c.upsampling_ratios,
                  norm=c.norm_type, causal=c.use_causal_conv, true_skip=not c.use_conv_shortcut)
    quantizer = encodec.quantization.ResidualVectorQuantizer(dimension=c.hidden_size, n_q=c.num_quantizers,
                                                             bins=c.codebook_size)
    model = encodec.EncodecModel(encodec.modules.SEANetEncoder(**shared), encodec.modules.SEANetDecoder(**shared), quantizer,
                                 c.target_bandwidths, c.sampling_rate, 1)
    model.load_state_dict(safetensors.torch.load_file(safetensors_file))
    model.set_target_bandwidth(c.target_bandwidths[-1])
    return model.eval()


@torch.no_grad()
def one_encodec(name, options, folder):
    config = transformers.EncodecConfig(**ENCODEC[name])
    rate, hop, most = config.sampling_rate, config.hop_length, config.target_bandwidths[-1]
    nacre = lambda *words: subprocess.run([options.nacre, *map(str, words)], check=True)
    audio = make_audio(round(options.seconds * rate / hop) * hop, 2)
    wave = torch.from_numpy(audio)[None, None]
    model = transformers.EncodecModel(config).eval()
    draw_encodec(model, audio)
    model.save_pretrained(folder / "hf")
    write_wav(folder / "in.wav", audio, rate)
    theirs = model.encode(wave, bandwidth=most).audio_codes
    nacre("encode", folder / "in.wav", "-o", folder / "in.nacre", "-m", folder / "hf", "-q")
    ours, gain = read_stream(folder / "in.nacre")
    if gain != 1:
        raise SystemExit(f"the gain of the stream is {gain}, expected 1")
    theirs_flat = theirs[0, 0].T.numpy()
    different, wrong = compare_euclidean(model, audio, ours, theirs_flat)

    decoded = model.decode(theirs, [None]).audio_values.reshape(-1).numpy()
    write_stream_codes(folder / "in.nacre", folder / "theirs.nacre", theirs_flat)
    nacre("decode", folder / "theirs.nacre", "-o", folder / "out.wav", "-m", folder / "hf", "-q", "--float")
    audio_error = relative(read_wav(folder / "out.wav"), decoded)

    nacre("export", "--format", "hf", "-m", folder / "hf", "-o", folder / "back", "-q")
    back, info = transformers.EncodecModel.from_pretrained(folder / "back", output_loading_info=True)
    keys = len(info["missing_keys"]) + len(info["unexpected_keys"])
    transformers.AutoFeatureExtractor.from_pretrained(folder / "back")
    before, after = model.state_dict(), back.eval().state_dict()
    weights = sum(int((after[k] != v).sum()) for k, v in before.items())
    back_codes = int((back.encode(wave, bandwidth=back.config.target_bandwidths[-1]).audio_codes != theirs).sum())
    back_audio = relative(back.decode(theirs, [None]).audio_values.reshape(-1).numpy(), decoded)

    nacre("export", "--format", "encodec", "-m", folder / "hf", "-o", folder / "package.safetensors", "-q")
    package = package_model(config, folder / "package.safetensors")
    frames = package.encode(wave)
    package_codes, package_wrong = compare_euclidean(model, audio, frames[0][0][0].T.numpy(), theirs_flat)
    package_audio = relative(package.decode([(theirs[0], None)]).reshape(-1).numpy(), decoded)
    print(f"| {name} | {len(audio) / rate:.2f} s | {ours.size} | {different} | {wrong} | {audio_error:.1e} | {keys} | "
          f"{weights} | {back_codes} | {back_audio:.1e} | {package_codes} | {package_audio:.1e} |", flush=True)
    return wrong + package_wrong + keys + weights == 0 and max(audio_error, back_audio, package_audio) < LIMIT


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nacre", default="build/cpu/nacre")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--layouts", default=",".join([*LAYOUTS, *ENCODEC]))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    good, layouts = True, options.layouts.split(",")
    for known, compare, head in ((LAYOUTS, one, DAC_HEAD), (ENCODEC, one_encodec, ENCODEC_HEAD)):
        if not any(name in known for name in layouts):
            continue
        print(f"| {head} |\n|" + "---|" * (head.count("|") + 1))
        for name in [name for name in layouts if name in known]:
            with tempfile.TemporaryDirectory() as folder:
                good = compare(name, options, pathlib.Path(folder)) and good
        print()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
