"""Writes ecdc.inc: .ecdc files of random codes as the package encodec writes them, for tests/files/ecdc_test.cpp.

A model that returns given codes stands for EnCodec's, so no weights are needed: encodec.compress writes the files and reads
them back. When the package reads, it computes the number of frames in floating point. For one in twenty of the lengths that
are whole frames it expects one frame more than its encoder makes, and fails to read its own file. One of the files is such a
file. The script prints how many lengths within an hour of audio are concerned.

The files of the 48 kHz model have a scale for each segment of one second, and segments begin every 0.99 s. The script
prints how many lengths of a segment are concerned by the rounding above, and the file of such a length is left out.

Run by hand in this folder, needs torch, torchaudio and encodec (0.1.1):  python make_ecdc.py
"""
import io
import math
import pathlib
import struct

import torch
from encodec.compress import MODELS, compress, decompress

HERE = pathlib.Path(__file__).resolve().parent
SEED, RATE, FRAME_RATE, HOP = 7, 24000, 75, 320
CASES = [(1000, 3), (1, 3), (320, 1), (321, 32), (25000, 2), (6720, 2)]  # samples, codebooks
RATE_48, FRAME_RATE_48, SEGMENT, STRIDE = 48000, 150, 48000, 47520
# A frame, two, one whole segment without another one, and signals that end in the part of two segments.
CASES_48 = [(1, 16), (700, 3), (47500, 1), (47620, 1), (95041, 2)]


class Stub:
    """The attributes of EncodecModel that encodec.compress uses."""
    name, bits_per_codebook, sample_rate, frame_rate = "encodec_24khz", 10, RATE, FRAME_RATE
    segment_length = segment_stride = None
    normalize = False
    codes = read = None

    def encode(self, _):
        return [(self.codes, None)]

    def decode(self, frames):
        self.read = frames[0][0]
        return torch.zeros(1, 1, self.read.shape[-1] * HOP)

    def to(self, _):
        return self


class Stub48(Stub):
    """The same for the model with segments: `codes` and `read` are lists of codes and scales."""
    name, sample_rate, frame_rate = "encodec_48khz", RATE_48, FRAME_RATE_48
    segment_length, segment_stride, normalize = SEGMENT, STRIDE, True

    def encode(self, _):
        return self.codes

    def decode(self, frames):
        self.read = frames
        return torch.zeros(1, 2, sum(codes.shape[-1] for codes, _ in frames) * HOP)


def segments_of(samples):
    return [min(samples - at, SEGMENT) for at in range(0, samples, STRIDE)]


def frames_of(samples):
    return -(-samples // HOP)


def frames_expected(samples, rate=RATE, frame_rate=FRAME_RATE):
    """As encodec.compress.decompress_from_file computes it."""
    return int(math.ceil(samples / rate * frame_rate))


def numbers(name, kind, values):
    lines, text = [], f"const {kind} {name}[] = {{"
    for v in values:
        text += f"{v}, "
        if len(text) > 112:
            lines.append(text.rstrip())
            text = "    "
    return "\n".join([*lines, text.rstrip(" ,") + "};\n"])


def golden_48():
    model = Stub48()
    MODELS["encodec_48khz"] = lambda: model
    text, rows = "", []
    for samples, codebooks in CASES_48:
        lengths = segments_of(samples)
        assert all(frames_expected(n, RATE_48, FRAME_RATE_48) == frames_of(n) for n in lengths)
        # The last scale is that of silence.
        scales = [*(0.01 + torch.rand(len(lengths) - 1)).tolist(), 1e-8]
        model.codes = [(torch.randint(1024, (1, codebooks, frames_of(n))), torch.tensor([[scale]]))
                       for n, scale in zip(lengths, scales)]
        data = compress(model, torch.zeros(2, samples), use_lm=False)
        wav, rate = decompress(data)
        assert wav.shape == (2, samples) and rate == RATE_48 and len(model.read) == len(lengths)
        assert all(torch.equal(a, c) and b == d.view(1) for (a, b), (c, d) in zip(model.read, model.codes))
        name = f"48_{samples}_{codebooks}"
        codes = [c for frames, _ in model.codes for c in frames[0].T.reshape(-1).tolist()]
        bits = [struct.unpack("<I", struct.pack("<f", scale.item()))[0] for _, scale in model.codes]
        text += numbers(f"ecdc_bytes_{name}", "unsigned char", data)
        text += numbers(f"ecdc_codes_{name}", "int32_t", codes)
        text += numbers(f"ecdc_scales_{name}", "uint32_t", bits)
        rows.append(f"    {{{samples}, {codebooks}, ecdc_bytes_{name}, ecdc_codes_{name}, ecdc_scales_{name}}},\n")
    wrong = [n for n in range(1, SEGMENT + 1) if frames_expected(n, RATE_48, FRAME_RATE_48) != frames_of(n)]
    print(f"of a segment, the package expects another number of frames for {len(wrong)} of {SEGMENT} lengths: {wrong[:6]}")
    return text + ("// Scales are the bits of float32, one of each segment.\n"
                   "struct GoldenEcdc48 {\n  uint64_t samples;\n  uint32_t codebooks;\n"
                   "  std::span<const unsigned char> bytes;\n  std::span<const int32_t> codes;\n"
                   "  std::span<const uint32_t> scales;\n};\nconst GoldenEcdc48 golden_ecdc_48[] = {\n" + "".join(rows) + "};\n")


def main():
    torch.manual_seed(SEED)
    model = Stub()
    MODELS["encodec_24khz"] = lambda: model
    text = "// Written by make_ecdc.py with encodec 0.1.1.\n"
    rows = []
    for samples, codebooks in CASES:
        model.codes = torch.randint(1024, (1, codebooks, frames_of(samples)))
        data = compress(model, torch.zeros(1, samples), use_lm=False)
        try:
            wav, rate = decompress(data)
            assert torch.equal(model.read, model.codes) and wav.shape[-1] == samples and rate == RATE
            assert frames_expected(samples) == frames_of(samples)
        except EOFError:
            assert frames_expected(samples) == frames_of(samples) + 1
        name = f"{samples}_{codebooks}"
        text += numbers(f"ecdc_bytes_{name}", "unsigned char", data)
        text += numbers(f"ecdc_codes_{name}", "int32_t", model.codes[0].T.reshape(-1).tolist())
        rows.append(f"    {{{samples}, {codebooks}, ecdc_bytes_{name}, ecdc_codes_{name}}},\n")
    text += ("struct GoldenEcdc {\n  uint64_t samples;\n  uint32_t codebooks;\n  std::span<const unsigned char> bytes;\n"
             "  std::span<const int32_t> codes;\n};\nconst GoldenEcdc golden_ecdc[] = {\n" + "".join(rows) + "};\n")
    text += golden_48()
    (HERE / "ecdc.inc").write_text(text)
    hour = 3600 * RATE
    more = [n * HOP for n in range(hour // HOP + 1) if frames_expected(n * HOP) != n]
    print(f"within an hour, the package expects one frame more for {len(more)} of {hour // HOP} lengths of whole frames: "
          f"{more[:6]} ...")
    assert all(frames_expected(n * HOP + d) == n + 1 for n in range(hour // HOP) for d in (1, HOP - 1))


main()
