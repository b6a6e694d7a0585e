// Codes and samples of a signal that arrives in pieces: no bit depends on the pieces, and the results are those of the
// whole signal.
#include "nacre/codec/streaming.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <thread>

#include "allocations.h"
#include "codec/exact_codec.h"
#include "codec/whole.h"
#include "nacre/codec/windowed.h"

using namespace nacre;
using namespace nacre::test;

namespace {

struct Kind {
  std::string name;
  CodecConfig config;
};

/// Small networks of all kinds.
std::vector<Kind> kinds() {
  const auto narrow = [](CodecConfig c, std::vector<int64_t> rates) {
    c.encoder_dim = 4, c.decoder_dim = 4 << rates.size();
    c.encoder_rates = rates;
    std::reverse(rates.begin(), rates.end());
    c.decoder_rates = rates;
    c.n_codebooks = 3, c.codebook_size = 16, c.codebook_dim = 4, c.codebooks_drawn = {};
    if (c.latent_dim > 0) c.latent_dim = 6;
    return c;
  };
  std::vector<Kind> all{{"causal, reflected", narrow(CodecConfig::named("encodec-24k"), {2, 5})},
                        {"ahead, reflected", narrow(CodecConfig::named("encodec-32k"), {2, 4})},
                        {"causal, zeros", narrow(CodecConfig::named("speech-8k"), {4, 2})},
                        {"dac, odd strides", narrow(CodecConfig::named("dac-16k"), {3, 5})},
                        {"speech", narrow(CodecConfig::named("speech-16k-small"), {2, 4, 5})}};
  all.push_back({"soundstream", narrow(CodecConfig::named("soundstream-24k"), {2, 5})});
  all.push_back({"soundstream, activations behind", narrow(CodecConfig::named("soundstream-16k"), {2, 4})});
  CodecConfig lrac = narrow(CodecConfig::named("lrac-24k"), {3, 5});
  lrac.encoder_channels = {2, 4, 6}, lrac.decoder_channels = {6, 4, 3};
  all.push_back({"lrac", lrac});
  all[1].config.dilations = {1, 3};
  all.push_back({"normalised positions", all[1].config});
  all.back().config.norm = Norm::layer;
  // Frames of three positions. The latent is late by other numbers of rows than a multiple of that.
  CodecConfig two = CodecConfig::named("ldcodec-16k");
  two.encoder_dim = 4, two.encoder_rates = {2, 5}, two.decoder_rates = {5, 2}, two.latent_dim = 6;
  two.decoder_channels = {8, 4, 4}, two.groups = 2, two.beam = 1;
  two.n_codebooks = 3, two.long_codebooks = 1, two.long_frames = 3, two.codebook_size = 16;
  all.push_back({"two rates", two});
  return all;
}

Codec made(Context& ctx, const CodecConfig& config, Storage storage = Storage::float32) {
  Codec codec(ctx, config, storage);
  codec.parameters().initialise(ctx, 3);
  codec.parameters().refresh(ctx);
  return codec;
}

std::vector<int32_t> drawn_codes(const CodecConfig& c, int64_t frames) {
  return whole_numbers<int32_t>(frames * c.codes_per_frame(), 0, static_cast<int>(c.codebook_size) - 1, 5);
}

/// Lengths of pieces, used in turn. Empty: the whole signal at once.
using Pieces = std::vector<size_t>;

std::vector<int32_t> encoded(Codec& codec, std::span<const float> x, int64_t block, const Pieces& pieces = {}) {
  std::vector<int32_t> codes;
  StreamingEncoder encoder(codec, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); },
                           {.block_frames = block});
  const auto total = static_cast<int64_t>(x.size());
  for (size_t i = 0; !x.empty(); ++i) {
    const size_t n = pieces.empty() ? x.size() : std::min(x.size(), pieces[i % pieces.size()]);
    encoder.push(x.first(n));
    x = x.subspan(n);
  }
  CHECK(encoder.finish() == total);
  return codes;
}
std::vector<float> decoded(Codec& codec, std::span<const int32_t> codes, int64_t block, const Pieces& frames = {}) {
  std::vector<float> y;
  StreamingDecoder decoder(codec, [&](std::span<const float> s) { y.insert(y.end(), s.begin(), s.end()); },
                           {.block_frames = block});
  const auto stages = static_cast<size_t>(codec.config().codes_per_frame());
  const auto total = static_cast<int64_t>(codes.size() / stages);
  for (size_t i = 0; !codes.empty(); ++i) {
    const size_t n = frames.empty() ? codes.size() : std::min(codes.size(), frames[i % frames.size()] * stages);
    decoder.push(codes.first(n));
    codes = codes.subspan(n);
  }
  CHECK(decoder.finish() == total);
  return y;
}

/// Frames whose codes differ. After a difference, the later codes of the frame follow from it.
int64_t frames_that_differ(const std::vector<int32_t>& a, const std::vector<int32_t>& b, int64_t stages) {
  REQUIRE(a.size() == b.size());
  int64_t n = 0;
  for (size_t f = 0; f < a.size(); f += static_cast<size_t>(stages))
    n += !std::equal(a.begin() + static_cast<std::ptrdiff_t>(f), a.begin() + static_cast<std::ptrdiff_t>(f) + stages,
                     b.begin() + static_cast<std::ptrdiff_t>(f));
  return n;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
         });
}
double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i)
    error += std::pow(double{a[i]} - double{b[i]}, 2), size += std::pow(double{b[i]}, 2);
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

}  // namespace

TEST_CASE("a stream gives, bit for bit, what the whole signal gives where sums are exact", "[streaming]") {
  for (const Device device : devices())
    for (const Topology& net : exact_nets) {
      const bool slow = emulated && device.kind != Device::cpu;
      Context ctx({.device = device, .threads = 2});
      Codec codec = looking_both_ways(ctx, net);
      const int64_t hop = codec.config().hop();
      for (const int64_t frames : slow ? std::vector<int64_t>{17} : std::vector<int64_t>{1, 2, 3, 11, 40}) {
        CAPTURE(str(device), net.rates, net.dilations, frames);
        const std::vector<float> x = whole_numbers<float>(frames * hop - 1, 1, 3, 1);
        const std::vector<int32_t> codes = encoded_whole(codec, x), given = whole_numbers<int32_t>(2 * frames, 1, 3, 2);
        const std::vector<float> y = decoded_whole(codec, given);
        for (const int64_t block : slow ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 2, 3, 16}) {
          INFO("blocks of " << block);
          CHECK(differences(encoded(codec, x, block), codes) == 0);
          CHECK(differences(decoded(codec, given, block), y) == 0);
        }
      }
    }
}

TEST_CASE("no bit of a stream depends on how the signal is cut", "[streaming]") {
  for (const Device device : devices())
    for (const auto& [name, config] : kinds()) {
      const bool slow = emulated && device.kind != Device::cpu;
      if (slow && name != "causal, reflected" && name != "ahead, reflected") continue;
      Context ctx({.device = device});
      Codec codec = made(ctx, config);
      const auto hop = static_cast<size_t>(config.hop());
      const int64_t frames = slow ? 14 : 45;
      const std::vector<float> x = noise(frames * config.hop() - 3, 1);
      const std::vector<int32_t> given = drawn_codes(config, frames);
      for (const int64_t block : slow ? std::vector<int64_t>{2} : std::vector<int64_t>{1, 2, 7}) {
        CAPTURE(str(device), name, block);
        const std::vector<int32_t> codes = encoded(codec, x, block);
        const std::vector<float> y = decoded(codec, given, block);
        for (const Pieces& pieces :
             slow ? std::vector<Pieces>{{hop - 1}, {hop + 1}}
                  : std::vector<Pieces>{{1}, {7}, {hop - 1}, {hop}, {hop + 1}, {97}, {3, 100, 1}}) {
          INFO("pieces of " << pieces[0]);
          CHECK(encoded(codec, x, block, pieces) == codes);
        }
        for (const Pieces& pieces : slow ? std::vector<Pieces>{{1}} : std::vector<Pieces>{{1}, {3}, {13}, {1, 5, 2}}) {
          INFO("pieces of " << pieces[0] << " frames");
          CHECK(same_bits(decoded(codec, given, block, pieces), y));
        }
      }
    }
}

TEST_CASE("a stream gives what the whole signal gives, for any length", "[streaming][step]") {
  int64_t seen = 0, differ = 0;
  for (const Device device : devices())
    for (const auto& [name, config] : kinds()) {
      const bool slow = emulated && device.kind != Device::cpu;
      if (slow && name != "causal, reflected" && name != "dac, odd strides") continue;
      Context ctx({.device = device});
      Codec codec = made(ctx, config);
      // Signals that are too short to be reflected are among them.
      for (const int64_t frames :
           slow ? std::vector<int64_t>{3, 15} : std::vector<int64_t>{0, 1, 2, 3, 5, 8, 9, 13, 60})
        for (const int64_t block : slow ? std::vector<int64_t>{1} : std::vector<int64_t>{1, 4, 32}) {
          CAPTURE(str(device), name, frames, block);
          const std::vector<float> x = noise(std::max<int64_t>(0, frames * config.hop() - 1), 2);
          seen += frames;
          differ += frames_that_differ(encoded(codec, x, block), encoded_whole(codec, x), config.codes_per_frame());
          const std::vector<int32_t> given = drawn_codes(config, frames);
          const std::vector<float> y = decoded_whole(codec, given);
          // Sums over other shapes have another order. A row that is lost or taken twice changes the first digits.
          CHECK(relative_difference(decoded(codec, given, block), y) <= 1e-5);
        }
    }
  // Rounding decides between two equally near codes: about one frame in 10^5.
  INFO(differ << " of " << seen);
  CHECK(differ <= 1 + seen / 10000);
}

TEST_CASE("a stream in bf16 gives what the whole signal gives", "[streaming]") {
  Context ctx;
  const Kind c = kinds()[0];
  Codec codec = made(ctx, c.config, Storage::bfloat16);
  const std::vector<int32_t> given = drawn_codes(c.config, 30);
  // Values are rounded to 8 bits after every layer, and here and there a different sum rounds to the neighbour.
  CHECK(relative_difference(decoded(codec, given, 2), decoded_whole(codec, given)) <= 0x1p-8);
  CHECK(same_bits(decoded(codec, given, 2, {1}), decoded(codec, given, 2)));
}

TEST_CASE("results come as soon as the network has what they depend on", "[streaming]") {
  Context ctx;
  for (const auto& [name, config] : kinds())
    for (const int64_t block : {1, 3}) {
      CAPTURE(name, block);
      Codec codec = made(ctx, config);
      const int64_t hop = config.hop(), stages = config.codes_per_frame();
      // What has come of `n` samples. The first block may be longer than the others.
      const auto expected = [](const StreamingLatency& l, int64_t n) {
        const int64_t first = std::max(l.start, l.block), blocks = n < first ? -1 : (n - first) / l.block;
        return blocks < 0 ? 0 : std::max<int64_t>(0, first + blocks * l.block - l.lookahead);
      };
      int64_t frames = 0, samples = 0;
      StreamingEncoder encoder(codec, [&](View<const int32_t> c) { frames += c.shape.time; }, {.block_frames = block});
      CHECK(encoder.latency() == encoding_latency(config, block));
      CHECK(encoder.latency().block == block * hop);
      CHECK(encoder.latency().lookahead % hop == 0);
      CHECK((encoder.latency().lookahead == 0) == config.causal);
      CHECK((encoder.latency().start > 0) == (config.padding == Padding::reflect));
      const std::vector<float> x = noise(60 * hop, 1);
      int64_t late = 0;
      for (int64_t n = 1; n <= 60 * hop; ++n) {
        encoder.push(std::span(x).subspan(static_cast<size_t>(n - 1), 1));
        late += frames * hop != expected(encoder.latency(), n);
      }
      CHECK(late == 0);
      StreamingDecoder decoder(codec, [&](std::span<const float> s) { samples += static_cast<int64_t>(s.size()); },
                               {.block_frames = block});
      CHECK(decoder.latency() == decoding_latency(config, block));
      CHECK((decoder.latency().lookahead == 0) == config.causal);
      const std::vector<int32_t> given = drawn_codes(config, 60);
      for (int64_t n = 1; n <= 60; ++n) {
        decoder.push(std::span(given).subspan(static_cast<size_t>((n - 1) * stages), static_cast<size_t>(stages)));
        late += samples != expected(decoder.latency(), n * hop);
      }
      CHECK(late == 0);
    }
}

TEST_CASE("the delays of published configurations", "[streaming]") {
  // Seven taps behind the last stride reflect six frames of the start.
  CHECK(encoding_latency(CodecConfig::named("encodec-24k")) == StreamingLatency{320, 0, 7 * 320});
  CHECK(decoding_latency(CodecConfig::named("encodec-24k")) == StreamingLatency{320, 0, 7 * 320});
  CHECK(encoding_latency(CodecConfig::named("speech-8k"), 2) == StreamingLatency{320, 0, 0});
  // The encoder's receptive field, in whole frames; that of the decoder, in samples.
  const CodecConfig dac = CodecConfig::named("dac-16k");
  CHECK(encoding_latency(dac).lookahead <= dac.encoder_context() * dac.hop());
  CHECK(encoding_latency(dac).lookahead > (dac.encoder_context() - 1) * dac.hop());
  CHECK(decoding_latency(dac).lookahead <= dac.decoder_context() * dac.hop());
  CHECK(decoding_latency(dac).lookahead > (dac.decoder_context() - 1) * dac.hop());
  CodecConfig whole = CodecConfig::named("encodec-32k");
  whole.norm = Norm::group;
  CHECK_THROWS_WITH(encoding_latency(whole), Catch::Contains("depends on the whole signal"));
}

TEST_CASE("a stream allocates nothing after its start", "[streaming]") {
  for (const Device device : devices()) {
    if (device.kind != Device::cpu) continue;  // the emulator allocates for every launch
    for (const auto& [name, config] : kinds()) {
      CAPTURE(name);
      Context ctx({.device = device, .threads = 2});
      Codec codec = made(ctx, config);
      int64_t results = 0;
      StreamingEncoder encoder(codec, [&](View<const int32_t> c) { results += c.shape.time; });
      StreamingDecoder decoder(codec, [&](std::span<const float> s) { results += static_cast<int64_t>(s.size()); });
      const std::vector<float> x = noise(40 * config.hop(), 1);
      const std::vector<int32_t> codes = drawn_codes(config, 40);
      const auto pass = [&] {
        encoder.push(x), encoder.finish(), encoder.reset();
        decoder.push(codes), decoder.finish(), decoder.reset();
      };
      pass();  // the thread pool and libraries start
      const int64_t before = allocations;
      pass();
      CHECK(allocations == before);
      CHECK(results == 2 * 40 * (1 + config.hop()));
    }
  }
}

TEST_CASE("a stream that is reset gives the same bits again", "[streaming]") {
  Context ctx;
  for (const auto& [name, config] : kinds()) {
    CAPTURE(name);
    Codec codec = made(ctx, config);
    std::vector<int32_t> codes;
    StreamingEncoder encoder(codec, [&](View<const int32_t> c) { codes.insert(codes.end(), c.begin(), c.end()); });
    const std::vector<float> x = noise(30 * config.hop(), 1);
    encoder.push(x), encoder.finish();
    const std::vector<int32_t> first = codes;
    for (const bool finished : {true, false}) {
      encoder.reset();
      encoder.push(std::span(x).subspan(500 % x.size() / 2));
      if (finished) encoder.finish();
      encoder.reset(), codes.clear();
      encoder.push(x), encoder.finish();
      CHECK(codes == first);
    }
  }
}

TEST_CASE("streams of one codec run in threads of their own", "[streaming]") {
  Context ctx({.threads = 1});
  const Kind c = kinds()[0];
  Codec codec = made(ctx, c.config);
  const std::vector<float> x = noise(60 * c.config.hop(), 1);
  const std::vector<int32_t> expected = encoded(codec, x, 1);
  std::vector<int32_t> found[3];
  std::vector<std::thread> threads;
  for (auto& codes : found)
    threads.emplace_back([&] {
      StreamingEncoder encoder(codec, [&](View<const int32_t> v) { codes.insert(codes.end(), v.begin(), v.end()); });
      for (size_t at = 0; at < x.size(); at += 50)
        encoder.push(std::span(x).subspan(at, std::min<size_t>(50, x.size() - at)));
      encoder.finish();
    });
  for (std::thread& t : threads) t.join();
  for (const auto& codes : found) CHECK(codes == expected);
}

TEST_CASE("calls that a stream refuses change nothing", "[streaming]") {
  Context ctx;
  const Kind c = kinds()[0];
  Codec codec = made(ctx, c.config);
  const auto ignore = [](auto) {};
  CHECK_THROWS_WITH(StreamingEncoder(codec, {}), Catch::Contains("StreamingEncoder: the sink is empty"));
  CHECK_THROWS_WITH(StreamingDecoder(codec, {}), Catch::Contains("StreamingDecoder: the sink is empty"));
  CHECK_THROWS_WITH(StreamingEncoder(codec, ignore, {.block_frames = 0}), Catch::Contains("a block of 0 frames"));
  CHECK_THROWS_WITH(StreamingDecoder(codec, ignore, {.block_frames = -2}), Catch::Contains("a block of -2 frames"));
  CHECK_THROWS_WITH(StreamingEncoder(codec, ignore, {.codebooks = 4}),
                    Catch::Contains("StreamingEncoder: codebooks is 4"));
  CodecConfig whole = kinds()[1].config;
  whole.norm = Norm::group;
  Codec unstreamable = made(ctx, whole);
  CHECK_THROWS_WITH(StreamingEncoder(unstreamable, ignore), Catch::Contains("depends on the whole signal"));
  CHECK_THROWS_WITH(StreamingDecoder(unstreamable, ignore), Catch::Contains("depends on the whole signal"));

  std::vector<int32_t> codes;
  StreamingEncoder encoder(codec, [&](View<const int32_t> v) { codes.insert(codes.end(), v.begin(), v.end()); });
  std::vector<float> x = noise(20 * c.config.hop(), 1);
  const std::vector<int32_t> expected = encoded(codec, x, 1);
  encoder.push(std::span(x).first(33));
  std::vector<float> bad(5, 0.0f);
  bad[3] = std::nanf("");
  CHECK_THROWS_WITH(encoder.push(bad), Catch::Contains("sample 3"));
  encoder.push(std::span(x).subspan(33));
  CHECK(encoder.finish() == static_cast<int64_t>(x.size()));
  CHECK_THROWS_WITH(encoder.finish(), Catch::Contains("called after finish"));
  CHECK_THROWS_WITH(encoder.push(x), Catch::Contains("called after finish"));
  CHECK(codes == expected);

  StreamingDecoder decoder(codec, ignore);
  CHECK_THROWS_WITH(decoder.push(std::vector<int32_t>(4, 0)), Catch::Contains("whole number of frames"));
  CHECK_THROWS_WITH(decoder.push(std::vector<int32_t>{0, 16, 0}), Catch::Contains("code 1 is 16"));
  StreamingDecoder moved = std::move(decoder);
  CHECK_THROWS_WITH(decoder.latency(), Catch::Contains("latency: the object was moved from"));  // NOLINT
  CodecConfig none = c.config;
  none.encoder_rates = {0};
  CHECK_THROWS_WITH(encoding_latency(none), Catch::Contains("codec.encoder_rates"));
  Codec gone = made(ctx, c.config);
  const Codec there = std::move(gone);
  CHECK_THROWS_WITH(StreamingEncoder(gone, ignore), Catch::Contains("the codec was moved from"));  // NOLINT
  CHECK(moved.finish() == 0);
  CHECK_THROWS_WITH(decoder.push({}), Catch::Contains("moved from"));  // NOLINT(bugprone-use-after-move)
}

TEST_CASE("a stream whose sink throws says so until it is reset", "[streaming]") {
  Context ctx;
  const Kind c = kinds()[2];
  Codec codec = made(ctx, c.config);
  const std::vector<float> x = noise(20 * c.config.hop(), 1);
  const std::vector<int32_t> expected = encoded(codec, x, 1);
  std::vector<int32_t> codes;
  bool fails = true;
  StreamingEncoder encoder(codec, [&](View<const int32_t> v) {
    if (fails && codes.size() == 9) throw std::runtime_error("the sink");
    codes.insert(codes.end(), v.begin(), v.end());
  });
  CHECK_THROWS_WITH(encoder.push(x), "the sink");
  CHECK_THROWS_WITH(encoder.push(x), Catch::Contains("push: an earlier call failed"));
  CHECK_THROWS_WITH(encoder.finish(), Catch::Contains("finish: an earlier call failed"));
  encoder.reset();
  fails = false, codes.clear();
  encoder.push(x), encoder.finish();
  CHECK(codes == expected);
  fails = true, codes.clear();
  WindowedEncoder windowed(
      codec, [&](View<const int32_t>, float) { throw std::runtime_error("the sink"); }, 2);
  CHECK_THROWS_WITH(windowed.push(x), "the sink");
  CHECK_THROWS_WITH(windowed.push(x), Catch::Contains("expected a new object"));
  CHECK_THROWS_WITH(windowed.finish(), Catch::Contains("expected a new object"));
}

TEST_CASE("the sink of one direction may use the codec for the other", "[streaming][windowed]") {
  Context ctx;
  for (const auto& [name, config] : kinds()) {
    CAPTURE(name);
    Codec codec = made(ctx, config);
    const std::vector<float> x = noise(60 * config.hop(), 1);
    size_t samples = 0;
    WindowedDecoder decoder(codec, [&](std::span<const float> s) { samples += s.size(); });
    WindowedEncoder encoder(
        codec,
        [&](View<const int32_t> v, float) {
          decoder.push({v.data, static_cast<size_t>(v.elements())});
        },
        config.recurrent() ? 4 : 0);
    encoder.push(x), encoder.finish(), decoder.finish();
    CHECK(samples == x.size());
    CHECK(codec.reserved_bytes() > 0);
  }
}

TEST_CASE("items of unequal length in a batch give what each gives by itself", "[streaming][lengths]") {
  const auto compare = [](Codec& codec, int64_t most, int high, const auto& same_codes, const auto& same_samples) {
    Context& ctx = codec.context();
    const int64_t hop = codec.config().hop(), stages = codec.config().codes_per_frame(), batch = 4;
    const std::vector<int64_t> frames{most, 1, 0, most / 2}, samples{most * hop - 1, 1, 0, most / 2 * hop};
    codec.reserve_inference(batch, most * hop, Codec::Use::both, 0, Codec::Ends::apart);
    OnDevice<float> audio(ctx, {.batch = batch, .time = most * hop});
    OnDevice<int32_t> codes(ctx, {.batch = batch, .time = most, .channels = stages});
    const std::vector<float> x = whole_numbers<float>(batch * most * hop, 1, 3, 1);
    const std::vector<int32_t> given = whole_numbers<int32_t>(batch * most * stages, 1, high, 2);
    std::vector<int32_t> found(given.size());
    std::vector<float> y(x.size());
    for (int pass = 0; pass < 2; ++pass) {  // a run leaves nothing to the next
      ctx.write<float>(x, audio.view);
      codec.encode(audio.view, codes.view, samples);
      ctx.read<int32_t>(codes.view, found);
      ctx.write<int32_t>(given, codes.view);
      codec.decode(codes.view, audio.view, frames);
      ctx.read<float>(audio.view, y);
    }
    for (int64_t b = 0; b < batch; ++b) {
      const auto n = static_cast<size_t>(b);
      const std::span<const float> item = std::span(x).subspan(n * size_t(most * hop), size_t(samples[n]));
      const std::span<const int32_t> item_codes = std::span(given).subspan(n * size_t(most * stages));
      const std::span<const int32_t> of_item =
          std::span(found).subspan(n * size_t(most * stages), size_t(most * stages));
      const std::span<const float> samples_of_item = std::span(y).subspan(n * size_t(most * hop), size_t(most * hop));
      const auto end = static_cast<size_t>(frames[n]);
      same_codes(std::vector<int32_t>(of_item.begin(), of_item.begin() + std::ptrdiff_t(end) * stages),
                 encoded_whole(codec, {item.begin(), item.end()}));
      same_samples(std::vector<float>(samples_of_item.begin(), samples_of_item.begin() + std::ptrdiff_t(end) * hop),
                   decoded_whole(codec, {item_codes.begin(), item_codes.begin() + std::ptrdiff_t(end) * stages}));
      const auto zero = [](auto v) { return v == 0; };
      CHECK(std::all_of(of_item.begin() + std::ptrdiff_t(end) * stages, of_item.end(), zero));
      CHECK(std::all_of(samples_of_item.begin() + std::ptrdiff_t(end) * hop, samples_of_item.end(), zero));
    }
  };
  for (const Device device : devices()) {
    const bool slow = emulated && device.kind != Device::cpu;
    Context ctx({.device = device, .threads = 2});
    for (const Topology& net : exact_nets) {
      CAPTURE(str(device), net.rates, net.dilations);
      Codec codec = looking_both_ways(ctx, net);
      compare(
          codec, slow ? 5 : 13, 3, [](const auto& a, const auto& b) { CHECK(differences(a, b) == 0); },
          [](const auto& a, const auto& b) { CHECK(differences(a, b) == 0); });
    }
    for (const auto& [name, config] : kinds()) {
      if (slow && name != "ahead, reflected") continue;
      CAPTURE(str(device), name);
      Codec codec = made(ctx, config);
      int64_t differ = 0;
      compare(
          codec, 13, static_cast<int>(config.codebook_size) - 1,
          [&](const auto& a, const auto& b) { differ += frames_that_differ(a, b, config.codes_per_frame()); },
          [](const auto& a, const auto& b) { CHECK(relative_difference(a, b) <= 1e-5); });
      CHECK(differ <= 1);  // of 20 frames; see above
    }
  }
}

TEST_CASE("lengths that a codec refuses", "[lengths]") {
  Context ctx;
  Codec codec = made(ctx, kinds()[0].config);
  const int64_t hop = codec.config().hop();
  OnDevice<float> audio(ctx, {.batch = 2, .time = 3 * hop});
  OnDevice<int32_t> codes(ctx, {.batch = 2, .time = 3, .channels = 3});
  codec.reserve_inference(2, 3 * hop);
  const std::vector<int64_t> good{1, 2}, one{1}, long_one{1, 3 * hop + 1}, negative{-1, 2}, many_frames{4, 1};
  CHECK_THROWS_WITH(codec.encode(audio.view, codes.view, good), Catch::Contains("expected Codec::Ends::apart"));
  CHECK_THROWS_WITH(codec.decode(codes.view, audio.view, good), Catch::Contains("expected Codec::Ends::apart"));
  codec.reserve_inference(2, 3 * hop, Codec::Use::both, 0, Codec::Ends::apart);
  CHECK_THROWS_WITH(codec.encode(audio.view, codes.view, one), Catch::Contains("encode: 1 lengths, expected 2"));
  CHECK_THROWS_WITH(codec.encode(audio.view, codes.view, long_one), Catch::Contains("expected 0 to 30"));
  CHECK_THROWS_WITH(codec.encode(audio.view, codes.view, negative), Catch::Contains("a length of -1"));
  CHECK_THROWS_WITH(codec.decode(codes.view, audio.view, many_frames), Catch::Contains("decode: a length of 4"));
  // What lies behind an item is not read.
  const std::vector<float> bad(static_cast<size_t>(6 * hop), std::nanf(""));
  ctx.write<float>(bad, audio.view);
  codec.encode(audio.view, codes.view, std::vector<int64_t>{0, 0});
  CHECK_THROWS_WITH(codec.encode(audio.view, codes.view, std::vector<int64_t>{0, 1}), Catch::Contains("sample 30"));
  ctx.zero(audio.view);
  codec.encode(audio.view, codes.view);  // all of every item
  codec.decode(codes.view, audio.view);
  CodecConfig whole = kinds()[1].config;
  whole.norm = Norm::group;
  Codec unstreamable = made(ctx, whole);
  CHECK_THROWS_WITH(unstreamable.reserve_inference(1, 8, Codec::Use::both, 0, Codec::Ends::apart),
                    Catch::Contains("depends on the whole signal"));
}

TEST_CASE("fewer codebooks in a stream are the first of all", "[streaming]") {
  Context ctx;
  const Kind c = kinds()[0];
  Codec codec = made(ctx, c.config);
  const std::vector<float> x = noise(30 * c.config.hop(), 1);
  const std::vector<int32_t> all = encoded(codec, x, 1);
  std::vector<int32_t> two;
  StreamingEncoder encoder(codec, [&](View<const int32_t> v) { two.insert(two.end(), v.begin(), v.end()); },
                           {.codebooks = 2});
  encoder.push(x), encoder.finish();
  REQUIRE(two.size() == 60);
  bool same = true;
  for (size_t i = 0; i < 60; ++i) same = same && two[i] == all[i / 2 * 3 + i % 2];
  CHECK(same);
}
