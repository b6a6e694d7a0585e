// Conditions around a call: other threads, parallel regions, forks, moves, exhausted memory, wrong arguments. This is a
// separate program, so that ThreadSanitizer can watch it alone.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "allocations.h"
#include "catch.h"
#include "codec/callers.h"
#include "nacre/codec/codec.h"
#include "nacre/codec/streaming.h"
#include "nacre/codec/windowed.h"
#include "nacre/training/training_step.h"

using namespace nacre;
using test::allocations_left;

namespace {

/// A small configuration with layers of all kinds: seven taps, strides, few outputs, wide pointwise layers, a beam.
CodecConfig small() {
  CodecConfig c = CodecConfig::named("speech-16k-small");
  c.n_codebooks = 3, c.codebook_size = 64, c.beam = 4;
  return c;
}

std::vector<float> tone(int64_t samples, double step) {
  std::vector<float> x(static_cast<size_t>(samples));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(0.5 * std::sin(step * static_cast<double>(i)));
  return x;
}

struct Result {
  std::vector<int32_t> codes;
  std::vector<float> audio;
  bool operator==(const Result&) const = default;
};

/// The codes of a signal, and the decoded codes.
Result coded(Codec& codec, int64_t frames, double step) {
  const int64_t hop = codec.config().hop(), books = codec.config().n_codebooks;
  const std::vector<float> x = tone(frames * hop, step);
  Result r{std::vector<int32_t>(static_cast<size_t>(frames * books)), std::vector<float>(x.size())};
  codec.reserve_inference(1, frames * hop);
  codec.encode({x.data(), {.time = frames * hop}}, {r.codes.data(), {.time = frames, .channels = books}});
  codec.decode({r.codes.data(), {.time = frames, .channels = books}}, {r.audio.data(), {.time = frames * hop}});
  return r;
}
Codec made(Context& ctx, uint64_t seed = 1) {
  Codec codec(ctx, small());
  codec.parameters().initialise(ctx, seed);
  return codec;
}
Result alone(int64_t frames, double step, int threads = 1) {
  Context ctx({.threads = threads});
  Codec codec = made(ctx);
  return coded(codec, frames, step);
}

constexpr int64_t frames = 60;
constexpr int many = 6;

int64_t frames_of(int i) { return frames + 20 * i; }
double step_of(int i) { return 0.01 * (i + 1); }

std::vector<Result> one_by_one() {
  std::vector<Result> all;
  for (int i = 0; i < many; ++i) all.push_back(alone(frames_of(i), step_of(i)));
  return all;
}

/// The text of the Error that f throws, after the exit code of its kind, for example "2 encode: ...". Any other
/// exception fails the test.
std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return std::to_string(e.exit_code()) + " " + e.what();
  }
  return "nothing thrown";
}
bool begins(const std::string& text, const std::string& with) { return text.compare(0, with.size(), with) == 0; }

}  // namespace

// ---- threads
// ---------------------------------------------------------------------------------------------------------------

TEST_CASE("codes and audio have the same bits with any number of threads") {
  const Result one = alone(200, 0.013, 1);
  for (const int threads : {2, 3, 8}) CHECK(alone(200, 0.013, threads) == one);
}

TEST_CASE("a training step has the same bits with any number of threads") {
  const auto trained = [](int threads) {
    Context ctx({.threads = threads});
    LossConfig loss;
    loss.windows = {32, 256}, loss.mels = {5, 40};
    TrainingStep step(ctx, small(), loss, {}, 3, 2400, 7);
    step.parameters().initialise(ctx, 1);
    const std::vector<float> audio = tone(3 * step.samples(), 0.02);
    const std::vector<int32_t> lengths{2400, 1200, 2000};
    step.load(audio, lengths);
    step.run();
    step.run();
    const View<const float> values = step.parameters().values();
    return std::vector<float>(values.begin(), values.end());
  };
  const std::vector<float> one = trained(1);
  for (const int threads : {2, 5}) CHECK(trained(threads) == one);
}

TEST_CASE("threads with a context each get the codes of one thread alone") {
  const std::vector<Result> expected = one_by_one();
  std::vector<Result> found(expected.size());
  std::vector<std::thread> threads;
  for (int i = 0; i < many; ++i)
    threads.emplace_back([&, i] { found[static_cast<size_t>(i)] = alone(frames_of(i), step_of(i), 1 + i % 3); });
  for (std::thread& t : threads) t.join();
  CHECK(found == expected);
}

TEST_CASE("threads with a codec each may share one context") {
  const std::vector<Result> expected = one_by_one();
  for (const int context_threads : {1, 3}) {
    Context ctx({.threads = context_threads});
    std::vector<Result> found(expected.size());
    std::vector<std::thread> threads;
    for (int i = 0; i < many; ++i)
      threads.emplace_back([&, i] {
        Codec codec = made(ctx);
        found[static_cast<size_t>(i)] = coded(codec, frames_of(i), step_of(i));
      });
    for (std::thread& t : threads) t.join();
    CHECK(found == expected);
  }
}

TEST_CASE("streams of one codec run in threads of their own") {
  Context ctx({.threads = 2});
  Codec codec = made(ctx);
  const auto streamed = [&](int i) {
    Result r;
    StreamingDecoder decoder(codec,
                             [&](std::span<const float> s) { r.audio.insert(r.audio.end(), s.begin(), s.end()); });
    StreamingEncoder encoder(codec, [&](View<const int32_t> c) {
      r.codes.insert(r.codes.end(), c.begin(), c.end());
      decoder.push({c.data, static_cast<size_t>(c.elements())});
    });
    const std::vector<float> x = tone(frames_of(i) * codec.config().hop(), step_of(i));
    for (size_t at = 0; at < x.size(); at += 480)
      encoder.push(std::span(x).subspan(at, std::min<size_t>(480, x.size() - at)));
    encoder.finish(), decoder.finish();
    return r;
  };
  constexpr int streams = 3;
  std::vector<Result> expected, found(streams);
  for (int i = 0; i < streams; ++i) expected.push_back(streamed(i));
  std::vector<std::thread> threads;
  for (int i = 0; i < streams; ++i) threads.emplace_back([&, i] { found[static_cast<size_t>(i)] = streamed(i); });
  for (std::thread& t : threads) t.join();
  CHECK(found == expected);
}

TEST_CASE("an object that is in use refuses a second call, and no third") {
  std::atomic<bool> flag{false};
  const std::string refused =
      "2 encode: another call is using this codec; expected one call at a time, or one codec per thread (they may "
      "share a "
      "Context)";
  {
    const InUse first(flag, "decode", "codec");
    CHECK(error_of([&] { InUse second(flag, "encode", "codec"); }) == refused);
    CHECK(error_of([&] { InUse second(flag, "encode", "codec"); }) == refused);
  }
  CHECK(error_of([&] { InUse third(flag, "encode", "codec"); }) == "nothing thrown");
}

TEST_CASE("threads with a codec each may share one CUDA context") {
  if (!cuda_available()) {
    SUCCEED("no CUDA device, real or emulated");
    return;
  }
  Context ctx({.device = {.kind = Device::cuda}});
  const auto encoded = [&](int i) {
    Codec codec = made(ctx);
    std::vector<int32_t> all;
    WindowedEncoder e(codec, [&](View<const int32_t> c, float) { all.insert(all.end(), c.begin(), c.end()); });
    e.push(tone(20 * codec.config().hop(), step_of(i)));
    e.finish();
    return all;
  };
  std::vector<std::vector<int32_t>> expected, found(3);
  for (int i = 0; i < 3; ++i) expected.push_back(encoded(i));
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&, i] { found[static_cast<size_t>(i)] = encoded(i); });
  for (std::thread& t : threads) t.join();
  CHECK(found == expected);
}

TEST_CASE("one codec in two threads is refused, and goes on") {
  Context ctx({.threads = 2});
  Codec codec = made(ctx);
  const Result expected = coded(codec, frames, 0.02);
  // Threads collide by chance. Some calls throw, and the others must be right.
  std::atomic<int> wrong{0}, done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      const std::vector<float> x = tone(frames * codec.config().hop(), 0.02);
      std::vector<int32_t> codes(expected.codes.size());
      for (int round = 0; round < 10; ++round) {
        const std::string error = error_of([&] {
          codec.encode({x.data(), {.time = static_cast<int64_t>(x.size())}},
                       {codes.data(), {.time = frames, .channels = codec.config().n_codebooks}});
        });
        if (error == "nothing thrown")
          ++done, wrong += codes != expected.codes;
        else
          wrong += !begins(error, "2 encode: another call is using this codec; expected one call at a time");
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(wrong == 0);
  CHECK(done > 0);
  CHECK(coded(codec, frames, 0.02) == expected);
}

#if defined(_OPENMP)
TEST_CASE("a caller's parallel loop gets the codes of a serial one") {
  const std::vector<Result> expected = one_by_one();
  for (const int threads : {2, 8}) {
    std::vector<Result> found(expected.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int i = 0; i < many; ++i) found[static_cast<size_t>(i)] = alone(frames_of(i), step_of(i));
    CHECK(found == expected);
  }
}
#endif

// ---- moves, forks
// ---------------------------------------------------------------------------------------------------------------

TEST_CASE("a context that a codec was made with may be moved, and may go first") {
  struct Model {
    Context ctx;
    Codec codec;
    explicit Model(uint64_t seed) : ctx({.threads = 2}), codec(made(ctx, seed)) {}
  };
  std::vector<Result> before, after;
  std::vector<Model> pool;
  for (uint64_t i = 0; i < 4; ++i) {
    Model m(i + 1);
    before.push_back(coded(m.codec, frames, 0.03));
    pool.push_back(std::move(m));  // the vector grows and moves earlier ones again
  }
  for (Model& m : pool) after.push_back(coded(m.codec, frames, 0.03));
  CHECK(before == after);

  Context from({.threads = 2}), to = std::move(from);
  CHECK(from.threads() == 2);
  CHECK(to.threads() == 2);
  Codec first = made(to), second = std::move(first);
  CHECK(error_of([&] { first.reserve_inference(1, 400); }) == "2 reserve_inference: the codec was moved from");
  CHECK(error_of([&] { first.set_beam(2); }) == "2 set_beam: the codec was moved from");
  CHECK(error_of([&] { first.set_denoise(false); }) == "2 set_denoise: the codec was moved from");
  CHECK(error_of([&] { first.encode({}, {}); }) == "2 encode: the codec was moved from");
  CHECK(error_of([&] { first.decode({}, {}); }) == "2 decode: the codec was moved from");

  auto ctx = std::make_unique<Context>(ContextOptions{.threads = 2});
  Codec codec = made(*ctx);
  ctx.reset();
  CHECK(coded(codec, frames, 0.03) == before[0]);
}

TEST_CASE("a process that was forked off works") {
  Context ctx({.threads = 3});
  Codec codec = made(ctx);
  const Result expected = coded(codec, frames, 0.04);
  // Once with the threads idle, and once while they work for another thread. That thread allocates nothing meanwhile,
  // because a fork must not copy a sanitizer's allocator while another thread holds its lock.
  for (const bool busy : {false, true}) {
    std::atomic<bool> stop{false};
    std::atomic<int> rounds{0};
    std::thread other;
    if (busy) {
      other = std::thread([&] {
        Codec mine = made(ctx);
        Result own = coded(mine, frames, 0.05);
        const std::vector<float> x = tone(frames * mine.config().hop(), 0.05);
        for (; !stop; ++rounds)
          mine.encode({x.data(), {.time = static_cast<int64_t>(x.size())}},
                      {own.codes.data(), {.time = frames, .channels = mine.config().n_codebooks}});
      });
      while (rounds == 0) std::this_thread::yield();
    }
    const pid_t child = fork();
    if (child == 0) {
      alarm(1800);  // ends a child that hangs, as late as the limit of the test itself
      int code = 1;
      try {
        if (coded(codec, frames, 0.04) == expected) code = 0;
        Codec fresh = made(ctx);
        if (coded(fresh, frames, 0.04) != expected) code = 2;
      } catch (...) {
        code = 3;
      }
      _exit(code);
    }
    int status = -1;
    CHECK(child > 0);
    if (child > 0) CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    stop = true;
    if (busy) other.join();
    CHECK(coded(codec, frames, 0.04) == expected);
  }
}

TEST_CASE("a CUDA context says that it does not work in a forked process") {
  if (!cuda_available()) {
    SUCCEED("no CUDA device, real or emulated");
    return;
  }
  Context ctx({.device = {.kind = Device::cuda}});
  ctx.synchronize();
  const pid_t child = fork();
  if (child == 0) {
    const std::string error = error_of([&] { ctx.synchronize(); });
    _exit(begins(error, "2 CUDA: this process was forked after the context was created") ? 0 : 1);
  }
  int status = -1;
  CHECK(child > 0);
  if (child > 0) CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  ctx.synchronize();
}

// ---- wrong calls
// ---------------------------------------------------------------------------------------------------------------

TEST_CASE("wrong calls throw Error(usage), and the object goes on") {
  Context ctx({.threads = 2});
  Codec codec = made(ctx);
  const Result expected = coded(codec, frames, 0.02);
  const int64_t hop = codec.config().hop(), books = codec.config().n_codebooks, samples = frames * hop;
  std::vector<float> x = tone(samples, 0.02);
  std::vector<int32_t> codes = expected.codes;
  const View<float> audio(x.data(), {.time = samples});
  const View<int32_t> view(codes.data(), {.time = frames, .channels = books});
  const View<float> no_audio(nullptr, {.time = samples});
  const View<int32_t> no_codes(nullptr, {.time = frames, .channels = books});

  CHECK(begins(error_of([&] { codec.encode(no_audio, view); }), "2 encode: audio is ["));
  CHECK(begins(error_of([&] { codec.encode(audio, no_codes); }), "2 encode: codes is ["));
  CHECK(begins(error_of([&] { codec.decode(no_codes, audio); }), "2 decode: codes is ["));
  CHECK(begins(error_of([&] { codec.decode(view, no_audio); }), "2 decode: audio is ["));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    x[17] = bad;
    CHECK(begins(error_of([&] { codec.encode(audio, view); }), "2 encode: sample 17 is "));
  }
  x = tone(samples, 0.02);
  for (const int32_t bad :
       {-1, static_cast<int32_t>(codec.config().codebook_size), std::numeric_limits<int32_t>::min()}) {
    codes[5] = bad;
    CHECK(begins(error_of([&] { codec.decode(view, audio); }), "2 decode: code 5 is " + std::to_string(bad)));
  }
  codes = expected.codes;
  CHECK(begins(error_of([&] { codec.reserve_inference(1, hop + 1); }), "2 reserve_inference: "));
  CHECK(begins(error_of([&] { codec.reserve_inference(-1, hop); }), "2 reserve_inference: "));
  std::vector<float> few(3);
  CHECK(begins(error_of([&] { ctx.read<float>(View<const float>(nullptr, {.time = 3}), few); }), "2 copy: the source"));
  CHECK(begins(error_of([&] { ctx.write<float>(few, View<float>(nullptr, {.time = 3})); }), "2 copy: the destination"));
  CHECK(begins(error_of([&] { Context bad({.threads = -1}); }), "2 threads: -1"));
  CHECK(coded(codec, frames, 0.02) == expected);
}

TEST_CASE("windowed coders refuse what comes after the end, and what no model takes") {
  Context ctx({.threads = 2});
  Codec codec = made(ctx);
  const std::vector<float> x = tone(30000, 0.02);
  const auto encoded = [&](bool wrong_calls) {
    std::vector<int32_t> all;
    WindowedEncoder e(codec, [&](View<const int32_t> c, float) { all.insert(all.end(), c.begin(), c.end()); });
    const auto wrong = [&](const std::function<void()>& call, const char* with) {
      if (wrong_calls) CHECK(begins(error_of(call), with));
    };
    const std::vector<float> nan(10, std::numeric_limits<float>::quiet_NaN());
    e.push(std::span(x).first(20000));
    wrong([&] { e.push(nan); }, "2 push: sample 0 is ");
    e.push(std::span(x).subspan(20000));
    CHECK(e.finish() == 30000);
    wrong([&] { e.push(x); }, "2 push: called after finish");
    wrong([&] { e.finish(); }, "2 finish: called after finish");
    return all;
  };
  const std::vector<int32_t> codes = encoded(false);
  CHECK(encoded(true) == codes);
  const auto decoded = [&](bool wrong_calls) {
    std::vector<float> all;
    WindowedDecoder d(codec, [&](std::span<const float> s) { all.insert(all.end(), s.begin(), s.end()); });
    const auto wrong = [&](const std::function<void()>& call, const char* with) {
      if (wrong_calls) CHECK(begins(error_of(call), with));
    };
    d.push(std::span(codes).first(30));
    const std::vector<int32_t> high(3, 64), low(3, -1);
    wrong([&] { d.push(high); }, "2 push: code 0 is 64, expected 0 to 63");
    wrong([&] { d.push(low); }, "2 push: code 0 is -1");
    wrong([&] { d.push(std::span(codes).first(4)); }, "2 decoder: 4 codes are not a whole number of frames");
    d.push(std::span(codes).subspan(30));
    d.finish();
    wrong([&] { d.push(codes); }, "2 push: called after finish");
    wrong([&] { d.finish(); }, "2 finish: called after finish");
    return all;
  };
  CHECK(decoded(true) == decoded(false));
  CHECK(begins(error_of([&] { WindowedEncoder(codec, nullptr); }), "2 WindowedEncoder: the sink is empty"));
  CHECK(begins(error_of([&] { WindowedDecoder(codec, nullptr); }), "2 WindowedDecoder: the sink is empty"));
  CHECK(begins(error_of([&] {
                 WindowedEncoder(
                     codec, [](View<const int32_t>, float) {}, -5);
               }),
               "2 WindowedEncoder: window of -5"));
}

TEST_CASE("a training step refuses lengths and stages that its batch cannot have") {
  Context ctx({.threads = 1});
  TrainingStep step(ctx, small(), {}, {}, 2, 2400, 7);
  const std::vector<float> audio = tone(2 * step.samples(), 0.02);
  using Ints = std::vector<int32_t>;
  CHECK(begins(error_of([&] {
                 step.load(audio, Ints{2400, 2401});
               }),
               "2 load: lengths[1] is 2401, expected 0 to 2400"));
  CHECK(begins(error_of([&] { step.load(audio, Ints{-1, 2400}); }), "2 load: lengths[0] is -1"));
  CHECK(begins(error_of([&] {
                 step.load(audio, Ints{2400, 2400}, Ints{1, 4});
               }),
               "2 load: stages[1] is 4, expected 0 to 3"));
  CHECK(begins(error_of([&] { step.load(audio, Ints{2400}); }), "2 copy: "));
  step.load(audio, Ints{2400, 2400});
  step.run();
  CHECK(std::isfinite(step.metrics().loss()));
}

// ---- memory
// ---------------------------------------------------------------------------------------------------------------

TEST_CASE("whichever allocation fails, the error is that of memory") {
  const Result expected = alone(frames, 0.02);
  Context ctx({.threads = 1});
  int64_t failures = 0;
  for (int64_t n = 0;; n += 1 + n / 40) {  // all at first, then fewer
    std::string error;
    std::optional<Result> found;
    const std::vector<float> x = tone(frames * small().hop(), 0.02);
    Result r{std::vector<int32_t>(expected.codes.size()), std::vector<float>(x.size())};
    CodecConfig config = small();
    const auto length = static_cast<int64_t>(x.size());
    allocations_left = n;
    try {
      Codec codec(ctx, std::move(config));
      codec.reserve_inference(1, length);
      allocations_left = -1;
      codec.parameters().initialise(ctx, 1);
      codec.encode({x.data(), {.time = length}}, {r.codes.data(), {.time = frames, .channels = 3}});
      codec.decode({r.codes.data(), {.time = frames, .channels = 3}}, {r.audio.data(), {.time = length}});
      found = r;
    } catch (const Error& e) {
      allocations_left = -1;
      error = std::to_string(e.exit_code());
    }
    allocations_left = -1;
    if (found) {
      CHECK(*found == expected);
      break;
    }
    CHECK(error == "5");
    ++failures;
  }
  CHECK(failures > 40);
}
