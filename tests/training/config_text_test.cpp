// The text of a written configuration, byte by byte. Checkpoints, streams and runs are compared by it.
#include "harness.h"
#include "nacre/training/run_config.h"

using namespace nacre;
using namespace nacre::training;

namespace {

const char* const speech_text = R"({
  "codec": {
    "activation": "snake",
    "activation_order": "before",
    "audio_channels": 1,
    "beam": 8,
    "causal": false,
    "codebook_dim": 8,
    "codebook_size": 1024,
    "codebooks_drawn": [],
    "dead_below": 0.03,
    "decoder_channels": [],
    "decoder_dim": 256,
    "decoder_rates": [
      5,
      4,
      2
    ],
    "denoise": "none",
    "dilations": [
      1,
      3,
      9
    ],
    "ema_decay": 0.99,
    "ema_rows": 320000,
    "encoder_channels": [],
    "encoder_dim": 16,
    "encoder_rates": [
      2,
      4,
      5
    ],
    "groups": 1,
    "kernel_size": 7,
    "latent_convolutions": true,
    "latent_dim": 64,
    "long_codebooks": 0,
    "long_frames": 1,
    "lstm_layers": 0,
    "metric": "euclidean",
    "n_codebooks": 8,
    "network": "dac",
    "norm": "weight",
    "output_tanh": true,
    "padding": "zero",
    "quantizer": "ema",
    "quantizer_dropout": 0.0,
    "residual_kernel_size": 0,
    "residual_kernel_sizes": [],
    "residual_taps": "first",
    "residual_width": 0.0,
    "sample_rate": 16000,
    "segment": 0,
    "segment_scale": false,
    "segment_stride": 0,
    "shortcut": "identity",
    "synthesiser_kernel_size": 0,
    "upsampling_strides": 2
  },
  "discriminator": {
    "beta1": 0.8,
    "beta2": 0.99,
    "clip": 10.0,
    "learning_rate": 0.0001,
    "level": true,
    "loss": "least_squares",
    "period_channels": [
      8,
      32,
      128,
      256,
      256
    ],
    "periods": [
      2,
      3,
      5,
      7,
      11
    ],
    "residual_channels": 32,
    "residual_norm": "weight",
    "residual_slope": 0.2,
    "residual_windows": [],
    "scale_norm": "weight",
    "scale_slope": 0.2,
    "scales": [],
    "stft_channels": 32,
    "stft_slope": 0.2,
    "stft_windows": [],
    "update_fraction": 1.0,
    "waveform": false,
    "weight_decay": 0.01,
    "window_channels": 8,
    "window_full_layers": 0,
    "windows": [
      2048,
      1024,
      512
    ]
  },
  "loss": {
    "adversarial": 0.0,
    "adversarial_start": 0,
    "balanced": true,
    "balancer_decay": 0.999,
    "balancer_norm": "batch",
    "feature": 1.0,
    "feature_relative": false,
    "mel": 1.0,
    "mel_excess": 1.0,
    "mel_fmin": 0.0,
    "mel_kind": "log",
    "mel_scale": "slaney",
    "mel_transient": 0.0,
    "mel_transient_rise": 10.0,
    "mels": [
      10,
      40,
      80
    ],
    "orthogonal": true,
    "stft": 1.0,
    "vq": 1.0,
    "vq_mean": false,
    "waveform": 1.0,
    "windows": [
      64,
      256,
      1024
    ]
  },
  "optimizer": {
    "beta1": 0.5,
    "beta2": 0.9,
    "clip": 1.0,
    "ema_decay": 0.99,
    "eps": 1e-08,
    "learning_rate": 0.0001,
    "weight_decay": 0.01
  },
  "training": {
    "batch_size": 8,
    "checkpoint_minutes": 10.0,
    "clean_target": 1.0,
    "codebook_average_rows": 320000,
    "codebook_start_rows": 60000,
    "final_rate": 0.01,
    "held_out_folders": true,
    "max_steps": 0,
    "noise_gain": [
      -30,
      0
    ],
    "noise_share": 0.5,
    "num_epochs": 100,
    "rate_decay": 0.999996,
    "salvage": false,
    "schedule": "cosine",
    "schedule_steps": 0,
    "seed": 1,
    "segment_length": 4000,
    "start": "transform",
    "valid_fraction": 0.05,
    "valid_seconds": 60.0,
    "warmup_steps": 0
  }
})";

const char* const dac_text = R"({
  "codec": {
    "activation": "snake",
    "activation_order": "before",
    "audio_channels": 1,
    "beam": 1,
    "causal": false,
    "codebook_dim": 8,
    "codebook_size": 1024,
    "codebooks_drawn": [],
    "dead_below": 0.03,
    "decoder_channels": [],
    "decoder_dim": 1536,
    "decoder_rates": [
      8,
      8,
      4,
      2
    ],
    "denoise": "none",
    "dilations": [
      1,
      3,
      9
    ],
    "ema_decay": 0.99,
    "ema_rows": 0,
    "encoder_channels": [],
    "encoder_dim": 64,
    "encoder_rates": [
      2,
      4,
      8,
      8
    ],
    "groups": 1,
    "kernel_size": 7,
    "latent_convolutions": true,
    "latent_dim": 1024,
    "long_codebooks": 0,
    "long_frames": 1,
    "lstm_layers": 0,
    "metric": "cosine",
    "n_codebooks": 9,
    "network": "dac",
    "norm": "weight",
    "output_tanh": true,
    "padding": "zero",
    "quantizer": "factorised",
    "quantizer_dropout": 0.5,
    "residual_kernel_size": 0,
    "residual_kernel_sizes": [],
    "residual_taps": "first",
    "residual_width": 0.0,
    "sample_rate": 44100,
    "segment": 0,
    "segment_scale": false,
    "segment_stride": 0,
    "shortcut": "identity",
    "synthesiser_kernel_size": 0,
    "upsampling_strides": 2
  },
  "discriminator": {
    "beta1": 0.8,
    "beta2": 0.99,
    "clip": 10.0,
    "learning_rate": 0.0001,
    "level": true,
    "loss": "least_squares",
    "period_channels": [
      32,
      128,
      512,
      1024,
      1024
    ],
    "periods": [
      2,
      3,
      5,
      7,
      11
    ],
    "residual_channels": 32,
    "residual_norm": "weight",
    "residual_slope": 0.2,
    "residual_windows": [],
    "scale_norm": "weight",
    "scale_slope": 0.2,
    "scales": [],
    "stft_channels": 32,
    "stft_slope": 0.2,
    "stft_windows": [],
    "update_fraction": 1.0,
    "waveform": false,
    "weight_decay": 0.01,
    "window_channels": 32,
    "window_full_layers": 0,
    "windows": [
      2048,
      1024,
      512
    ]
  },
  "loss": {
    "adversarial": 1.0,
    "adversarial_start": 0,
    "balanced": false,
    "balancer_decay": 0.999,
    "balancer_norm": "batch",
    "feature": 2.0,
    "feature_relative": false,
    "mel": 105.0,
    "mel_excess": 1.0,
    "mel_fmin": 0.0,
    "mel_kind": "log",
    "mel_scale": "slaney",
    "mel_transient": 0.0,
    "mel_transient_rise": 10.0,
    "mels": [
      5,
      10,
      20,
      40,
      80,
      160,
      320
    ],
    "orthogonal": false,
    "stft": 0.0,
    "vq": 0.25,
    "vq_mean": false,
    "waveform": 0.0,
    "windows": [
      32,
      64,
      128,
      256,
      512,
      1024,
      2048
    ]
  },
  "optimizer": {
    "beta1": 0.8,
    "beta2": 0.99,
    "clip": 1000.0,
    "ema_decay": 0.0,
    "eps": 1e-08,
    "learning_rate": 0.0001,
    "weight_decay": 0.01
  },
  "training": {
    "batch_size": 12,
    "checkpoint_minutes": 10.0,
    "clean_target": 1.0,
    "codebook_average_rows": 0,
    "codebook_start_rows": 0,
    "final_rate": 0.01,
    "held_out_folders": true,
    "max_steps": 0,
    "noise_gain": [
      -30,
      0
    ],
    "noise_share": 0.5,
    "num_epochs": 100,
    "rate_decay": 0.999996,
    "salvage": false,
    "schedule": "exponential",
    "schedule_steps": 0,
    "seed": 1,
    "segment_length": 16758,
    "start": "random",
    "valid_fraction": 0.05,
    "valid_seconds": 60.0,
    "warmup_steps": 0
  }
})";

}  // namespace

TEST_CASE("run configurations: the text of a written one stays the same", "[config]") {
  CHECK(RunConfig::named("speech-16k-small").to_json() == speech_text);
  CHECK(RunConfig::named("dac-44k").to_json() == dac_text);
}

TEST_CASE("codec configurations: the text of a written one is that of the run's section", "[config]") {
  for (const auto& [name, text] : {std::pair{"speech-16k-small", speech_text}, {"dac-44k", dac_text}}) {
    // The section, indented by two spaces less.
    const std::string run = text, begin = "  \"codec\": ";
    const size_t from = run.find(begin) + begin.size();
    std::string section = run.substr(from, run.find("\n  }", from) + 4 - from);
    for (size_t at = section.find("\n  "); at != std::string::npos; at = section.find("\n  ", at + 1))
      section.erase(at + 1, 2);
    CHECK(CodecConfig::named(name).to_json() == section);
  }
}
