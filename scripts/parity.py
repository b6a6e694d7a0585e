#!/usr/bin/env python3
"""Compares nacre with DacModel and EncodecModel of transformers, and with the package encodec, in the layouts of the
published models, with random weights.

  python3 scripts/parity.py [--nacre build/cpu/nacre] [--seconds 10]
                            [--layouts dac_16khz,dac_24khz,dac_44khz,encodec_24khz,encodec_32khz,encodec_48khz]

Run by hand; needs torch and transformers (python3 -m venv; pip install torch transformers), and encodec for its layouts.
For each layout it

  - draws weights by which activations keep their scale, and saves the model with save_pretrained;
  - encodes noise-like audio by both programs and compares the codes, and the scales of segments;
  - decodes the codes of transformers by both programs and compares the audio;
  - exports nacre's model with --format hf, loads that with from_pretrained, and compares weights, codes and audio with
    the first model;
  - for EnCodec, also exports it with --format encodec, loads that with load_state_dict, and compares codes and audio.

The audio has a peak of exactly 0.95, to which nacre encode scales its input, so that both programs see equal samples.
A code that differs is a near tie if, for DAC, the similarities of both codes differ by less than 1e-5 of the largest one;
for EnCodec, if what is quantised is nearer to the plane between both codes than 1e-5 of the norm of the latent. Only the
first differing stage of a frame is judged, because later stages see another residual.

The audio of a layout with segments ends within a frame.

Prints the tables of docs/exchange.md. Exit code 1 if a code differs without a near tie, a tensor is missing or unexpected,
or audio or a scale differs by more than 1e-5.
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
    "encodec_48khz": dict(audio_channels=2, sampling_rate=48000, target_bandwidths=[3.0, 6.0, 12.0, 24.0],
                          norm_type="time_group_norm", use_causal_conv=False, normalize=True, chunk_length_s=1.0,
                          overlap=0.01),
}
DAC_HEAD = ("layout | audio | codes | differ | no near tie | samples fewer | audio | audio, end | keys | weights, back | "
            "codes, back | audio, back")
ENCODEC_HEAD = ("layout | audio | codes | differ | no near tie | scales | audio | keys | weights, back | codes, back | "
                "audio, back | codes, encodec | audio, encodec")
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
    """audio: [samples], or [samples, channels]."""
    data = audio.astype("<f4").tobytes()
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " +
                     struct.pack("<IHHIIHH", 16, 3, channels, rate, 4 * channels * rate, 4 * channels, 32) + b"data" +
                     struct.pack("<I", len(data)) + data)


def read_wav(path):
    """Samples, channels interleaved."""
    data = path.read_bytes()
    at = 12
    while data[at:at + 4] != b"data":
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    size = struct.unpack_from("<I", data, at + 4)[0]
    return np.frombuffer(data[at + 8:at + 8 + size], "<f4")


def packets_of(data):
    """The layout of a .nacre stream of one group of channels (docs/format.md): codebooks, bits per code, where the scale
    and the codes of every packet begin, and its frames."""
    books, = struct.unpack_from("<H", data, 22)
    size, = struct.unpack_from("<I", data, 28)
    extended = struct.unpack_from("<H", data, 10)[0] & 1
    scaled = extended and struct.unpack_from("<H", data, 58)[0] & 1
    bits, at, packets = int(size - 1).bit_length(), 76 if extended else 60, []
    while data[at:at + 1] == b"P":
        frames, = struct.unpack_from("<I", data, at + 8)
        codes = at + 12 + (4 if scaled else 0)
        packets.append((at, codes, frames))
        at = codes + (frames * books * bits + 7) // 8 + 4
    return books, bits, scaled, packets


def read_stream(path):
    """The codes of a .nacre stream of one group of channels, [frames, codebooks], its gain and the scales of segments."""
    data = path.read_bytes()
    gain, = struct.unpack_from("<f", data, 36)
    books, bits, scaled, packets = packets_of(data)
    out, scales = [], []
    for at, codes, frames in packets:
        flat = np.unpackbits(np.frombuffer(data[codes:codes + (frames * books * bits + 7) // 8], np.uint8),
                             bitorder="little")
        flat = flat[:frames * books * bits].reshape(frames, books, bits)
        out.append((flat.astype(np.int64) << np.arange(bits)).sum(2))
        if scaled:
            scales.append(struct.unpack_from("<f", data, at + 12)[0])
    return np.concatenate(out), gain, np.array(scales)


def write_stream_codes(path, target, codes, scales=()):
    """The stream `path` with other codes and scales, and its checksums renewed."""
    data = bytearray(path.read_bytes())
    books, bits, scaled, packets = packets_of(data)
    done, header_crc = 0, struct.unpack_from("<I", data, packets[0][0] - 4)[0]
    for number, (at, begin, frames) in enumerate(packets):
        part = codes[done:done + frames].reshape(-1)
        flat = (part[:, None] >> np.arange(bits)) & 1
        packed = np.packbits(flat.astype(np.uint8).reshape(-1), bitorder="little").tobytes()
        if scaled:
            struct.pack_into("<f", data, at + 12, scales[number])
        data[begin:begin + len(packed)] = packed
        struct.pack_into("<I", data, begin + len(packed), crc32c(bytes(data[at:begin + len(packed)]), header_crc))
        done += frames
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
    ours, gain, _ = read_stream(folder / "in.nacre")
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


def segments_of(model, wave):
    """Segments of a signal [1, channels, samples], each with its scale: the whole signal if there are none."""
    length, stride = model.config.chunk_length or wave.shape[2], model.config.chunk_stride or wave.shape[2]
    for offset in range(0, wave.shape[2], stride):
        segment = wave[:, :, offset:offset + length]
        scale = segment.mean(1).square().mean().sqrt() + 1e-8 if model.config.normalize else torch.ones(())
        yield segment, scale


def latents_of(model, wave):
    """The latents [frames, latent] of all segments, one behind the other."""
    return torch.cat([model.encoder(segment / scale)[0].T for segment, scale in segments_of(model, wave)])


@torch.no_grad()
def draw_encodec(model, wave):
    """Weights by which activations keep their scale. Codes have a third of the residual's norm, as much as the nearest of
    1024 random directions in 128 dimensions can remove, so that the residual shrinks slowly over the stages."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p, std=0.05)
        elif "lstm" in name:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
        elif name.endswith("norm.weight"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        elif name.endswith("original1") or name.endswith("conv.weight"):
            torch.nn.init.normal_(p, std=(p.shape[1] * min(p.shape[2], 7)) ** -0.5)
    for name, p in model.named_parameters():
        if name.endswith("original0"):
            v = model.get_parameter(name[:-1] + "1")
            p.copy_(v.flatten(1).norm(dim=1).reshape(p.shape) * torch.empty_like(p).uniform_(0.8, 1.25))
    residual = latents_of(model, wave)
    for stage in model.quantizer.layers:
        book = stage.codebook
        book.embed.copy_(residual.square().mean().sqrt() / 3 * torch.randn_like(book.embed))
        book.cluster_size.uniform_(0.5, 8)
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        residual = residual - book.embed[torch.cdist(residual, book.embed).argmin(1)]


@torch.no_grad()
def compare_euclidean(model, wave, ours, theirs):
    """As compare_codes()."""
    differs = ours != theirs
    wrong, frames = 0, np.flatnonzero(differs.any(1))
    if len(frames):
        z = latents_of(model, wave).double()
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
    shared = dict(channels=c.audio_channels, dimension=c.hidden_size, n_filters=c.num_filters, ratios=c.upsampling_ratios,
                  norm=c.norm_type, causal=c.use_causal_conv, true_skip=not c.use_conv_shortcut)
    quantizer = encodec.quantization.ResidualVectorQuantizer(dimension=c.hidden_size, n_q=c.num_quantizers,
                                                             bins=c.codebook_size)
    model = encodec.EncodecModel(encodec.modules.SEANetEncoder(**shared), encodec.modules.SEANetDecoder(**shared), quantizer,
                                 c.target_bandwidths, c.sampling_rate, c.audio_channels, normalize=c.normalize,
                                 segment=c.chunk_length_s, overlap=c.overlap or 0.01)
    model.load_state_dict(safetensors.torch.load_file(safetensors_file))
    model.set_target_bandwidth(c.target_bandwidths[-1])
    return model.eval()


@torch.no_grad()
def one_encodec(name, options, folder):
    config = transformers.EncodecConfig(**ENCODEC[name])
    rate, hop, most, width = config.sampling_rate, config.hop_length, config.target_bandwidths[-1], config.audio_channels
    nacre = lambda *words: subprocess.run([options.nacre, *map(str, words)], check=True)
    samples = round(options.seconds * rate / hop) * hop
    if config.chunk_length:
        samples -= 77
    audio = make_audio(samples * width, 2).reshape(samples, width)
    wave = torch.from_numpy(audio.T.copy())[None]
    model = transformers.EncodecModel(config).eval()
    draw_encodec(model, wave)
    model.save_pretrained(folder / "hf")
    write_wav(folder / "in.wav", audio, rate)

    def decoded_by(by, codes):
        audio_values = by.decode(codes.audio_codes, codes.audio_scales,
                                 last_frame_pad_length=codes.last_frame_pad_length).audio_values
        return audio_values[0, :, :samples].T.reshape(-1).numpy()

    theirs = model.encode(wave, bandwidth=most)
    padding = theirs.last_frame_pad_length or 0
    parts = [codes[0] for codes in theirs.audio_codes]  # [codebooks, frames] of every segment
    parts[-1] = parts[-1][:, :parts[-1].shape[1] - padding]
    nacre("encode", folder / "in.wav", "-o", folder / "in.nacre", "-m", folder / "hf", "-q")
    ours, gain, scales = read_stream(folder / "in.nacre")
    if gain != 1:
        raise SystemExit(f"the gain of the stream is {gain}, expected 1")
    theirs_flat = torch.cat(parts, 1).T.numpy()
    different, wrong = compare_euclidean(model, wave, ours, theirs_flat)
    their_scales = np.array([s.item() for s in theirs.audio_scales]) if config.normalize else np.zeros(0)
    if len(scales) != len(their_scales):
        raise SystemExit(f"the stream has {len(scales)} scales, expected {len(their_scales)}")
    scale_error = float(np.abs(scales / their_scales - 1).max()) if config.normalize else 0.0

    decoded = decoded_by(model, theirs)
    write_stream_codes(folder / "in.nacre", folder / "theirs.nacre", theirs_flat, their_scales)
    nacre("decode", folder / "theirs.nacre", "-o", folder / "out.wav", "-m", folder / "hf", "-q", "--float")
    audio_error = relative(read_wav(folder / "out.wav"), decoded)

    nacre("export", "--format", "hf", "-m", folder / "hf", "-o", folder / "back", "-q")
    back, info = transformers.EncodecModel.from_pretrained(folder / "back", output_loading_info=True)
    keys = len(info["missing_keys"]) + len(info["unexpected_keys"])
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder / "back")
    for counted in (back.config, extractor):
        if (counted.chunk_length, counted.chunk_stride) != (config.chunk_length, config.chunk_stride):
            raise SystemExit(f"segments are {counted.chunk_length}, {counted.chunk_stride} samples after export")
    if extractor.feature_size != width:
        raise SystemExit(f"the feature extractor has {extractor.feature_size} channels, expected {width}")
    before, after = model.state_dict(), back.eval().state_dict()
    weights = sum(int((after[k] != v).sum()) for k, v in before.items())
    again = back.encode(wave, bandwidth=back.config.target_bandwidths[-1])
    back_codes = int((again.audio_codes != theirs.audio_codes).sum())
    back_audio = relative(decoded_by(back, theirs), decoded)

    nacre("export", "--format", "encodec", "-m", folder / "hf", "-o", folder / "package.safetensors", "-q")
    package = package_model(config, folder / "package.safetensors")
    frames = package.encode(wave)
    package_flat = torch.cat([codes[0] for codes, _ in frames], 1).T.numpy()
    package_codes, package_wrong = compare_euclidean(model, wave, package_flat, theirs_flat)
    package_audio = relative(package.decode([(codes[None], scale) for codes, scale in zip(parts, theirs.audio_scales)])
                             [0, :, :samples].T.reshape(-1).numpy(), decoded)
    scale_column = f"{scale_error:.1e}" if config.normalize else "-"
    print(f"| {name} | {samples / rate:.2f} s | {ours.size} | {different} | {wrong} | {scale_column} | {audio_error:.1e} | "
          f"{keys} | {weights} | {back_codes} | {back_audio:.1e} | {package_codes} | {package_audio:.1e} |", flush=True)
    return (wrong + package_wrong + keys + weights == 0 and
            max(scale_error, audio_error, back_audio, package_audio) < LIMIT)


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
