// The trainer's scores of held-out audio and its choice of the best checkpoint. They are compared with the same figures
// computed in another way: from the files on the disk, the saved model, and sums in double.
#include <algorithm>
#include <limits>

#include "nacre/codec/codec.h"
#include "nacre/codec/windowed.h"
#include "nacre/files/checkpoint_store.h"
#include "training/run_by_hand.h"

using namespace nacre;
using namespace nacre::test;

namespace {

std::vector<float> noisy_sine(int64_t samples, double frequency, double amplitude, double noise, uint64_t stream) {
  std::vector<float> x = sine(samples, frequency, 16000, amplitude);
  const Philox draw{21, stream};
  for (size_t t = 0; t < x.size(); ++t) x[t] += static_cast<float>(noise * (2 * draw.uniform(t) - 1));
  return x;
}

/// Seven files for training, and three held-out files with other sounds and levels. One of these is stereo, and two are
/// shorter than tiny()'s segment of 400 samples.
void write_parts(const TemporaryFolder& folder) {
  for (int i = 0; i < 7; ++i)
    write_wav(folder / ("data/" + std::to_string(i) + ".wav"),
              {.samples = noisy_sine(1300 + 150 * i, 300 + 90 * i, 0.4, 0.05, static_cast<uint64_t>(i)),
               .sample_rate = 16000,
               .channels = 1});
  write_wav(folder / "data/valid/quiet.wav",
            {.samples = noisy_sine(390, 150, 0.1, 0.02, 10), .sample_rate = 16000, .channels = 1});
  write_wav(folder / "data/valid/rough.wav",
            {.samples = noisy_sine(2401, 700, 0.3, 0.5, 11), .sample_rate = 16000, .channels = 1});
  const std::vector<float> left = noisy_sine(399, 500, 0.6, 0.1, 12), right = noisy_sine(399, 2100, 0.3, 0.1, 13);
  std::vector<float> both;
  for (size_t t = 0; t < left.size(); ++t) both.insert(both.end(), {left[t], right[t]});
  write_wav(folder / "data/valid/stereo.wav", {.samples = both, .sample_rate = 16000, .channels = 2});
}

/// The processing that the README describes: mixed to mono, scaled to a peak of 0.95.
std::vector<float> as_the_model_sees(const fs::path& file) {
  const Audio audio = read_audio(file);
  std::vector<float> mono;
  for (int64_t t = 0; t < audio.frames(); ++t) {
    double sum = 0;
    for (int c = 0; c < audio.channels; ++c)
      sum += static_cast<double>(audio.samples[static_cast<size_t>(t * audio.channels + c)]);
    mono.push_back(static_cast<float>(sum / audio.channels));
  }
  float peak = 0;
  for (const float v : mono) peak = std::max(peak, std::fabs(v));
  for (float& v : mono) v *= 0.95f / peak;
  return mono;
}

struct Judged {
  double snr = 0, si_sdr = 0;             // means over files
  double x = 0, xx = 0, y = 0, yy = 0;    // means over samples
  std::vector<double> usage, perplexity;  // of each codebook
};

Judged judged_by_hand(Codec& codec, const std::vector<fs::path>& files) {
  Judged all;
  double samples = 0;
  const auto books = static_cast<size_t>(codec.config().n_codebooks);
  std::vector<std::map<int32_t, double>> counts(books);
  for (const fs::path& file : files) {
    const std::vector<float> x = as_the_model_sees(file);
    std::vector<int32_t> codes;
    WindowedEncoder encoder(codec,
                            [&](View<const int32_t> c, float) { codes.insert(codes.end(), c.begin(), c.end()); });
    encoder.push(x);
    encoder.finish();
    for (size_t i = 0; i < codes.size(); ++i) counts[i % books][codes[i]] += 1;
    std::vector<float> y;
    WindowedDecoder decoder(codec,
                            [&](std::span<const float> piece) { y.insert(y.end(), piece.begin(), piece.end()); });
    decoder.push(codes);
    decoder.finish();
    const auto n = static_cast<double>(x.size());
    double signal = 0, noise = 0, sum_x = 0, sum_y = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      const double a = x[t], b = y[t];
      signal += a * a, noise += (a - b) * (a - b), sum_x += a, sum_y += b;
      all.xx += a * a, all.yy += b * b;
    }
    all.snr += 10 * std::log10(signal / noise) / static_cast<double>(files.size());
    // SI-SDR from the cosine of the angle between the signals without their means: cos^2 / (1 - cos^2).
    double aa = 0, bb = 0, ab = 0;
    for (size_t t = 0; t < x.size(); ++t) {
      const double a = static_cast<double>(x[t]) - sum_x / n, b = static_cast<double>(y[t]) - sum_y / n;
      aa += a * a, bb += b * b, ab += a * b;
    }
    const double cosine = ab * ab / (aa * bb);
    all.si_sdr += 10 * std::log10(cosine / (1 - cosine)) / static_cast<double>(files.size());
    all.x += sum_x, all.y += sum_y, samples += n;
  }
  all.x /= samples, all.y /= samples, all.xx /= samples, all.yy /= samples;
  for (const auto& book : counts) {
    double total = 0, entropy = 0;
    for (const auto& [code, count] : book) total += count;
    for (const auto& [code, count] : book) entropy -= count / total * std::log2(count / total);
    all.usage.push_back(static_cast<double>(book.size()) / static_cast<double>(codec.config().codebook_size));
    all.perplexity.push_back(std::exp2(entropy));
  }
  return all;
}

/// Sums of a few thousand doubles with float inputs are exact to 2^-40 in any order. Decibels of ratios far from 1 lose
/// a few bits.
Approx good(double value) { return Approx(value).epsilon(0).margin(1e-9); }

std::vector<nlohmann::json> evaluations(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  for (const nlohmann::json& line : log_lines(run))
    if (line.contains("valid/snr")) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("judging: the figures of an epoch are those of the saved model on the held-out files") {
  const TemporaryFolder folder;
  write_parts(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 3;
  config.optimizer.learning_rate = 0.01;
  config.optimizer.ema_decay = 0.95;
  Trainer t(folder, "run", config);
  const Outcome o = t.run();
  const std::vector<fs::path> held_out{folder / "data/valid/quiet.wav", folder / "data/valid/rough.wav",
                                       folder / "data/valid/stereo.wav"};
  const std::vector<nlohmann::json> lines = evaluations(t.options.run);
  REQUIRE(lines.size() == 4);

  Context ctx({.device = {}, .threads = 1});
  const auto compare = [&](const nlohmann::json& line, const fs::path& model) {
    INFO(model);
    Codec codec = Codec::load(ctx, model);
    const Judged expected = judged_by_hand(codec, held_out);
    CHECK(line["valid/snr"].get<double>() == good(expected.snr));
    CHECK(line["valid/si_sdr"].get<double>() == good(expected.si_sdr));
    CHECK(line["valid/input_mean"].get<double>() == good(expected.x));
    CHECK(line["valid/output_mean"].get<double>() == good(expected.y));
    CHECK(line["valid/input_std"].get<double>() == good(std::sqrt(expected.xx - expected.x * expected.x)));
    CHECK(line["valid/output_std"].get<double>() == good(std::sqrt(expected.yy - expected.y * expected.y)));
    for (size_t book = 0; book < 2; ++book) {
      CHECK(line["codebook_usage"][book].get<double>() == expected.usage[book]);
      CHECK(line["codebook_perplexity"][book].get<double>() == good(expected.perplexity[book]));
    }
    return expected.snr;
  };
  compare(lines.front(), t.options.run / "start/model.safetensors");
  const double snr = compare(lines.back(), o.result.checkpoint / "model.safetensors");
  CHECK(o.result.snr == lines.back()["valid/snr"].get<double>());
  CHECK(contains(
      o.text, "held out: SNR " + [&] {
        char text[32];
        std::snprintf(text, sizeof text, "%+.2f dB", snr);
        return std::string(text);
      }()));
  const Checkpoint saved = verify_checkpoint(o.result.checkpoint);
  REQUIRE(saved.metric);
  CHECK(*saved.metric == good(snr));

  // The averaged model was scored and saved, on held-out files. Trained weights and other files would have other
  // scores.
  RunByHand by_hand(config, folder / "data");
  by_hand.begin();
  while (by_hand.done < o.result.step) by_hand.next(config.optimizer.learning_rate);
  Codec raw(ctx, config.codec), averaged(ctx, config.codec);
  raw.parameters().assign(ctx, by_hand.step.parameters());
  averaged.parameters().assign(ctx, by_hand.step.parameters(), by_hand.step.averaged());
  CHECK(judged_by_hand(averaged, held_out).snr == snr);
  CHECK(std::fabs(judged_by_hand(raw, held_out).snr - snr) > 1e-3);
  std::vector<fs::path> all = held_out;
  for (int i = 0; i < 7; ++i) all.push_back(folder / ("data/" + std::to_string(i) + ".wav"));
  CHECK(std::fabs(judged_by_hand(averaged, all).snr - snr) > 1e-3);

  // Losses are those of the trained weights, on fixed crops of the held-out files.
  std::vector<int64_t> clips, lengths;
  for (size_t i = 0; i < by_hand.data.clips().size(); ++i)
    if (by_hand.data.clips()[i].path.starts_with("valid/")) {
      clips.push_back(static_cast<int64_t>(i));
      lengths.push_back(by_hand.data.clips()[i].samples);
    }
  REQUIRE(clips.size() == 3);
  const CropSampler crops(clips, lengths, 400, 2, 0);
  REQUIRE(crops.steps_per_epoch() >= 4);  // the first four are measured
  double waveform = 0, stft = 0, mel = 0, commitment = 0;
  by_hand.short_crops = 0;
  for (int64_t b = 0; b < 4; ++b) {
    by_hand.load(crops, b);
    by_hand.step.measure();
    const StepMetrics m = by_hand.step.metrics();
    const auto quarter = [&](const char* term) { return static_cast<double>(m.term(term).value) / 4; };
    waveform += quarter("waveform"), stft += quarter("stft"), mel += quarter("mel");
    commitment += static_cast<double>(m.commitment) / 4;
  }
  REQUIRE(by_hand.short_crops > 0);  // the padding behind them must not count
  // Means of four floats.
  const auto mean_of_floats = [](double value) { return Approx(value).epsilon(8 * 0x1p-24); };
  CHECK(lines.back()["valid/waveform"].get<double>() == mean_of_floats(waveform));
  CHECK(lines.back()["valid/stft"].get<double>() == mean_of_floats(stft));
  CHECK(lines.back()["valid/mel"].get<double>() == mean_of_floats(mel));
  CHECK(lines.back()["valid/vq"].get<double>() == mean_of_floats(commitment));
  CHECK(lines.back()["valid/loss"].get<double>() == mean_of_floats(waveform + stft + mel + commitment));
}

TEST_CASE("judging: the best checkpoint is that of the highest SNR, and it is kept") {
  const TemporaryFolder folder;
  write_parts(folder);
  RunConfig config = tiny();
  config.training.num_epochs = 5;
  // Learning rates that rise until training fails: 7 dB after the first epoch and -7 dB at the end, with any seed.
  config.training.warmup_steps = 80;
  config.optimizer.learning_rate = 0.3;
  config.optimizer.ema_decay = 0.5;
  config.training.checkpoint_minutes = 1e-9;  // after every step
  Trainer t(folder, "run", config);
  const TrainResult end = t.run().result;
  int64_t best_step = 0;
  double best = -std::numeric_limits<double>::infinity(), worst = -best;
  for (const nlohmann::json& line : evaluations(t.options.run)) {
    if (line["epoch"] == 0) continue;  // the start is no checkpoint
    const double snr = line["valid/snr"].get<double>();
    if (snr > best) best = snr, best_step = line["step"].get<int64_t>();
    worst = std::min(worst, snr);
  }
  const std::vector<int64_t> kept = list_checkpoints(t.options.run);
  REQUIRE(best - worst > 5);
  REQUIRE(best_step < end.step - 2);  // not one of the last three, which are kept in any case
  CHECK(kept == std::vector<int64_t>{best_step, end.step - 2, end.step - 1, end.step});
  const CheckpointSearch found = best_checkpoint(t.options.run);
  REQUIRE(found.found);
  CHECK(found.found->step == best_step);
  CHECK(found.found->metric == best);
  CHECK(find_model(t.options.run) == found.found->file("model.safetensors"));
  Context ctx({.device = {}, .threads = 1});
  Codec codec = Codec::load(ctx, find_model(t.options.run));
  const std::vector<fs::path> held_out{folder / "data/valid/quiet.wav", folder / "data/valid/rough.wav",
                                       folder / "data/valid/stereo.wav"};
  CHECK(judged_by_hand(codec, held_out).snr == good(best));
}

TEST_CASE("judging: of many short files, those that are judged are spread over the list") {
  const TemporaryFolder folder;
  for (int i = 0; i < 40; ++i) {
    const std::string name = std::string(1, static_cast<char>('a' + i / 10)) + std::to_string(i % 10) + ".wav";
    write_sine(folder / ("data/valid/" + name), 1600, 200 + 20 * i);
    write_sine(folder / ("data/train/" + name), 1600, 205 + 20 * i);
  }
  const Dataset data(folder / "data", dataset_options(tiny()));
  const auto judged = [&](double seconds) {
    std::vector<int64_t> clips;
    for (const Excerpt& e : judged_excerpts(data, seconds)) clips.push_back(e.clip);
    return clips;
  };
  std::vector<int64_t> all = judged(0);
  std::sort(all.begin(), all.end());
  CHECK(all == data.held_out());
  // Files of 0.1 s: five are too few for 0.55 s, six are enough. Adjacent files are often the same sentence, so none of
  // the chosen ones are adjacent.
  std::vector<int64_t> some = judged(0.55);
  REQUIRE(some.size() == 6);
  std::sort(some.begin(), some.end());
  for (size_t i = 1; i < some.size(); ++i) CHECK(some[i] - some[i - 1] >= 2);
}
