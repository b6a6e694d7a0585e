"""Writes encodec_24k/, encodec_32k/, encodec_group/ and encodec_48k/: small EnCodec models with random weights, and what
they compute.

Run by hand in this folder, needs torch, transformers, safetensors and encodec:  python make_encodec.py [FOLDER ...]

Each folder has one model in two forms, and its results:

  model.safetensors, config.json   as EncodecModel.save_pretrained of transformers writes them
  encodec.safetensors              the state dict of the package encodec
  results.safetensors              the results below

The forms are those of the published models with fewer channels: 24k is causal with a convolution in the shortcuts; 32k is
not causal, has the input itself in the shortcuts, an odd stride, and here two residual units per stride; group is not
causal and has a group normalisation behind each convolution. Results of these three:

  audio.<frames>     [samples]         random; a whole number of hops
  latents.<frames>   [frames, latent]  the encoder's output
  codes.<frames>     [frames, codebooks]
  output.<frames>    [samples]         the decoder's output for these codes, not clipped
  weights.latents    [frames, latent]  random; sum (latents * weights.latents) is the loss of gradient.encoder.<name>
  weights.output     [samples]         random; sum (output * weights.output) is the loss of gradient.decoder.<name>
  gradient.<name>    of five parameters of each half, for the longest audio. <name> has weight_g and weight_v

Signals of 1, 2 and 5 frames are shorter than the reflection at their ends in some layers.

48k is as group, with two channels, an odd stride, and segments of 480 samples that begin every 475 samples, each divided
by its scale. Its clips have lengths at which the last segment has 147, 2, 5 and 7 samples: no whole number of frames.

  audio.<samples>    [samples, 2]      random, with another level in every segment
  scales.<samples>   [segments]
  latents.<samples>  [frames, latent]  of all segments, one behind the other; the last one has its own frames alone
  codes.<samples>    [frames, codebooks]
  output.<samples>   [samples', 2]     the decoded segments, overlapped; the last frame is whole
  weights.pass       [2, 480, 2]       random; sum (estimate * weights.pass) is the loss of gradient.<name>
  gradient.<name>    of parameters of both halves, for the first two segments of the longest clip as a batch. The estimate
                     is the decoder's output times the scale. The gradient passes the quantizer straight through

Results were computed in double by transformers and rounded once to float. The script stops if the package encodec has other results, or if the distances
to the two nearest codes of a stage differ by less than 2e-4 of them, so that rounding would choose the code.
"""
import pathlib
import shutil
import sys

import encodec.model
import encodec.modules
import encodec.quantization
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
FORMS = {
    "encodec_24k": dict(num_filters=2, upsampling_ratios=[4, 2], sampling_rate=24000, use_causal_conv=True),
    "encodec_32k": dict(num_filters=2, upsampling_ratios=[3, 2], sampling_rate=32000, use_causal_conv=False,
                        use_conv_shortcut=False, num_residual_layers=2),
    "encodec_group": dict(num_filters=2, upsampling_ratios=[3], sampling_rate=48000, use_causal_conv=False,
                          norm_type="time_group_norm"),
    "encodec_48k": dict(num_filters=2, upsampling_ratios=[5, 2], sampling_rate=48000, use_causal_conv=False,
                        norm_type="time_group_norm", audio_channels=2, normalize=True, chunk_length_s=0.01, overlap=0.01),
}
# Samples of the form with segments. torch normalises no single value, which one sample of one channel would be.
CLIPS = (1097, 477, 480, 7)
BOOKS, SIZE, LATENT, LENGTHS = 3, 16, 8, (32, 1, 2, 5)
SEEDS = {"encodec_24k": 5, "encodec_32k": 6, "encodec_group": 7, "encodec_48k": 11}
FOLLOWED = {  # parameters whose gradients are stored, by the number of the layer from the front or from the end
    "encoder": ("0.conv.weight", "1.block.1.conv.weight", "{lstm}.lstm.weight_hh_l0",
                "{lstm}.lstm.bias_ih_l1", "{last}.conv.weight"),
    "decoder": ("0.conv.weight", "3.conv.weight", "1.lstm.weight_ih_l0", "4.block.3.conv.bias", "{last}.conv.weight"),
}
FOLLOWED_NORMS = ("0.norm.weight", "3.norm.bias", "{last}.norm.weight")  # in the form with segments


def draw(model):
    """Weights by which activations keep their scale, so that every layer matters. Gains are not norms of directions."""
    for name, p in model.named_parameters():
        if name.endswith("original0"):
            continue
        if ".norm." in name:
            torch.nn.init.uniform_(p, 0.5, 1.5) if name.endswith("weight") else torch.nn.init.normal_(p, std=0.1)
        elif "bias" in name:
            torch.nn.init.normal_(p, std=0.1)
        elif "lstm" in name:
            torch.nn.init.normal_(p, std=1.2 * p.shape[1] ** -0.5)
        else:
            torch.nn.init.normal_(p, std=(p.shape[1] * min(p.shape[2], 7)) ** -0.5)
    for name, p in model.named_parameters():
        if name.endswith("original0"):
            v = model.get_parameter(name[:-1] + "1")
            p.copy_(v.flatten(1).norm(dim=1).reshape(p.shape) * torch.empty_like(p).uniform_(0.8, 1.25))


def draw_codebooks(model, latents):
    """Codes near the residuals that occur, with the averages of a training run."""
    residual = latents
    for stage in model.quantizer.layers:
        book = stage.codebook
        rows = residual[torch.randperm(len(residual))[:SIZE]]
        book.embed.copy_(rows + 0.3 * residual.std() * torch.randn_like(rows))
        book.cluster_size.copy_(torch.empty(SIZE).uniform_(0.5, 8))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        residual = residual - book.embed[torch.cdist(residual, book.embed).argmin(1)]


def margin(model, latents):
    """The least difference of the two smallest distances over the smaller one."""
    residual, least = latents, float("inf")
    for stage in model.quantizer.layers:
        two = torch.cdist(residual, stage.codebook.embed).topk(2, largest=False)
        least = min(least, ((two.values[:, 1] - two.values[:, 0]) / two.values[:, 0]).min().item())
        residual = residual - stage.codebook.embed[two.indices[:, 0]]
    return least


def package_name(name, transposed):
    """The name of a tensor of EncodecModel in the package."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    if name.startswith("quantizer."):
        return name.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
    layer, rest = name.replace(".layers.", ".model.").split(".model.")
    number, rest = rest.split(".", 1)
    conv = "convtr" if layer == "decoder" and int(number) in transposed else "conv"
    if ".norm." in "." + rest:
        rest = rest.replace("norm.", f"{conv}.norm.")
    elif "lstm" not in rest:
        rest = rest.replace("conv.", f"{conv}.{conv}.")
    return f"{layer}.model.{number}.{rest}"


def package_model(c):
    shared = dict(channels=c.audio_channels, dimension=c.hidden_size, n_filters=c.num_filters, n_residual_layers=c.num_residual_layers,
                  ratios=c.upsampling_ratios, norm=c.norm_type, causal=c.use_causal_conv, true_skip=not c.use_conv_shortcut)
    quantizer = encodec.quantization.ResidualVectorQuantizer(dimension=c.hidden_size, n_q=BOOKS, bins=c.codebook_size)
    model = encodec.model.EncodecModel(
        encodec.modules.SEANetEncoder(**shared), encodec.modules.SEANetDecoder(**shared), quantizer, c.target_bandwidths,
        c.sampling_rate, c.audio_channels, normalize=c.normalize, segment=c.chunk_length_s, overlap=c.overlap or 0.01)
    model.set_target_bandwidth(c.target_bandwidths[-1])
    return model.double().eval()


def made(name, options, draw_audio):
    """Both programs' model in double, and the audio; the model's files are written."""
    hop = int(torch.tensor(options["upsampling_ratios"]).prod())
    per_book = -(-options["sampling_rate"] // hop) * 4  # bit/s
    config = transformers.EncodecConfig(hidden_size=LATENT, codebook_size=SIZE,
                                        # Above the bitrate of all codebooks, which rounding must not exceed.
                                        target_bandwidths=[n * per_book / 1000 for n in (1.1, BOOKS + 0.1)], **options)
    model = transformers.EncodecModel(config).eval()
    assert config.num_quantizers == BOOKS
    with torch.no_grad():
        draw(model)
        audio, first = draw_audio(hop)
        draw_codebooks(model, model.encoder(first)[0].T)
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name)
    state = model.state_dict()
    transposed = {i for i, layer in enumerate(model.decoder.layers) if "Transpose" in type(layer).__name__}
    package = {package_name(k, transposed): v.clone() for k, v in state.items()}
    safetensors.torch.save_file(package, HERE / name / "encodec.safetensors", {"format": "pt"})

    model.double()
    other = package_model(config)
    other.load_state_dict(package)
    return model, other, audio


def followed(half, net, more=()):
    """Names of the parameters whose gradients are stored."""
    layers = len(net.layers)
    return [f"{half}.layers." + leaf.format(last=layers - 1, lstm=layers - 3) for leaf in (*FOLLOWED[half], *more)]


def check_margin(name, model, latents):
    least = margin(model, latents)
    if least < 2e-4:
        raise SystemExit(f"{name}: the two nearest codes of a frame differ by {least:.1e}; choose another seed")
    return least


def write_results(name, results):
    made_by = f"make_encodec.py with transformers {transformers.__version__}, torch {torch.__version__}"
    safetensors.torch.save_file(results, HERE / name / "results.safetensors", {"made_by": made_by})
    for file in (HERE / name).iterdir():
        file.chmod(0o644)


def whole(name, options):
    """A form that codes a signal at once."""
    def draw_audio(hop):
        all_lengths = {frames: 0.5 * torch.randn(frames * hop) for frames in LENGTHS}
        return all_lengths, all_lengths[LENGTHS[0]][None, None]

    model, other, audio = made(name, options, draw_audio)
    config, results = model.config, {}
    for frames in LENGTHS:
        x = audio[frames].double()[None, None]
        with torch.no_grad():
            latents = model.encoder(x)[0].T
            codes = model.quantizer.encode(latents.T[None], config.target_bandwidths[-1])[:, 0]
            quantised = model.quantizer.decode(codes[:, None])
            output = model.decoder(quantised).reshape(-1)
            frame = other.encode(x)[0]
            assert torch.equal(frame[0][0], codes)
            assert (other.decode([frame]).reshape(-1) - output).abs().max() < 1e-9 * output.abs().max()
            assert (other.encoder(x)[0].T - latents).abs().max() < 1e-9 * latents.abs().max()
            least = check_margin(name, model, latents)
        print(f"{name}: {frames} frames, latents {latents.square().mean().sqrt():.3f}, "
              f"output {output.square().mean().sqrt():.3f}, margin {least:.1e}, codes {[len(c.unique()) for c in codes]}")
        results |= {f"audio.{frames}": audio[frames], f"latents.{frames}": latents.float().contiguous(),
                    f"codes.{frames}": codes.T.to(torch.int32).contiguous(), f"output.{frames}": output.float()}
        if frames != LENGTHS[0]:
            continue
        for half, net, value, label in (("encoder", model.encoder, x, "latents"),
                                        ("decoder", model.decoder, quantised, "output")):
            y = net(value)
            y = y[0].T if half == "encoder" else y.reshape(-1)
            weights = torch.randn(y.shape, dtype=torch.float32)
            results[f"weights.{label}"] = weights
            model.zero_grad()
            (y * weights).sum().backward()
            for leaf in followed(half, net):
                if leaf.endswith(".weight") and config.norm_type == "weight_norm":
                    at = leaf[:-len("weight")]
                    for ours, theirs in (("weight_g", "original0"), ("weight_v", "original1")):
                        parameter = model.get_parameter(f"{at}parametrizations.weight.{theirs}")
                        results[f"gradient.{at}{ours}"] = parameter.grad.float()
                else:
                    results[f"gradient.{leaf}"] = model.get_parameter(leaf).grad.float()
    write_results(name, results)


def segmented(name, options):
    """A form that codes segments, each with a scale."""
    length = round(options["chunk_length_s"] * options["sampling_rate"])
    stride = int((1 - options["overlap"]) * length)

    def draw_audio(hop):
        clips = {}
        for samples in CLIPS:
            channels = 0.5 * torch.randn(1, samples) + 0.3 * torch.randn(2, samples)
            levels = torch.tensor([1, 0.05, 0.3])[torch.arange(samples) // stride]
            clips[samples] = channels * levels
        first = clips[CLIPS[0]][None, :, :length]
        return clips, first / first.mean(1).square().mean().sqrt()

    model, other, audio = made(name, options, draw_audio)
    config, results = model.config, {}
    most = config.target_bandwidths[-1]
    assert (config.chunk_length, config.chunk_stride) == (length, stride)
    for samples in CLIPS:
        x = audio[samples].double()[None]
        latents, all_codes, scales = [], [], []
        with torch.no_grad():
            for offset in range(0, samples, stride):
                segment = x[..., offset:offset + length]
                codes, scale = model._encode_frame(segment, most)
                latents.append(model.encoder(segment / scale)[0].T)
                all_codes.append(codes[0].T)
                scales.append(scale.reshape(()))
            together = model.encode(x, bandwidth=most)
            output = model.decode(together.audio_codes, together.audio_scales,
                                  last_frame_pad_length=together.last_frame_pad_length).audio_values[0]
            frames = other.encode(x)
            assert torch.equal(torch.cat([f[0][0].T for f in frames]), torch.cat(all_codes))
            assert all((f[1] - s).abs() < 1e-12 * s for f, s in zip(frames, scales))
            assert (other.decode(frames)[0] - output).abs().max() < 1e-9 * output.abs().max()
            latents, codes = torch.cat(latents), torch.cat(all_codes)
            least = min(check_margin(name, model, z) for z in latents.split([len(c) for c in all_codes]))
        print(f"{name}: {samples} samples, frames {[len(c) for c in all_codes]}, scales {[f'{s:.4f}' for s in scales]}, "
              f"latents {latents.square().mean().sqrt():.3f}, output {output.square().mean().sqrt():.3f}, margin {least:.1e}, "
              f"codes {[len(c.unique()) for c in codes.T]}")
        results |= {f"audio.{samples}": audio[samples].T.contiguous(), f"scales.{samples}": torch.stack(scales).float(),
                    f"latents.{samples}": latents.float().contiguous(),
                    f"codes.{samples}": codes.to(torch.int32).contiguous(),
                    f"output.{samples}": output.T.float().contiguous()}
    x = audio[CLIPS[0]].double()
    x = torch.stack([x[:, :length], x[:, stride:stride + length]])
    scale = x.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8
    latents = model.encoder(x / scale)
    quantised = model.quantizer.decode(model.quantizer.encode(latents.detach(), most))
    estimate = scale * model.decoder(latents + (quantised - latents).detach())
    weights = torch.randn(estimate.mT.shape, dtype=torch.float32)
    results["weights.pass"] = weights
    model.zero_grad()
    (estimate.mT * weights).sum().backward()
    for half, net in (("encoder", model.encoder), ("decoder", model.decoder)):
        for leaf in followed(half, net, FOLLOWED_NORMS):
            results[f"gradient.{leaf}"] = model.get_parameter(leaf).grad.float()
    write_results(name, results)


if __name__ == "__main__":
    for folder, form in FORMS.items():
        if folder in (sys.argv[1:] or FORMS):
            torch.manual_seed(SEEDS[folder])
            (segmented if "chunk_length_s" in form else whole)(folder, form)
